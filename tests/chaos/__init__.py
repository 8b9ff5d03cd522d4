"""Money and work survive on real processes, whatever is done to them.

``deployment`` is what runs, ``load`` who uses it, ``faults`` what is done to it, ``checks`` what
must hold nevertheless, ``run`` all of that for a while.
"""
