"""Money, work and what owners are told survive on real processes, whatever fails.

``deployment`` is what runs, ``load`` are its users, ``followers`` those that wait for the end and
``receiver`` the owners' webhook endpoints. ``faults`` is what is done to it, ``checks`` and
``told`` are the rules that hold nevertheless, and ``run`` puts them together.
"""
