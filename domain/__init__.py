"""The domain: credits, sessions and tasks, and the rules between them. Standard library only.

Read in this order: ``credits`` (who pays), ``sessions`` (what is paid for), ``tasks`` (what the
queue carries), ``ports`` (what adapters provide), ``errors`` (what may fail) and ``causes`` (why).
Then the use cases: ``submission`` (charge, record, push), ``generation`` (claim, work, settle),
``recovery`` (bring every session to its final status), ``views`` (sessions as their owners see
them) and ``uploads`` (callers' own pictures). What operators do is in ``accounts``, ``stores``,
``keys`` and ``operations``, with ``account_ports`` and ``operators`` (who, why). What operators see
is in ``status`` with ``alarms``, ``finding``, ``session_files`` and ``doctor``, through
``operator_ports``. ``queue_gate``
tells a submission when to take no credit; ``circuit``, ``shares`` and ``starts`` tell a worker when
to start no work; ``links`` says which links can be followed, ``origins`` which web pages there are;
``deadlines`` makes many short timeouts cheap.
"""
