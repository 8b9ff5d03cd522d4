"""Money and work survive on real processes, whatever fails.

``deployment`` is what runs, ``load`` are its users, ``faults`` what is done to it, ``checks`` the
rules that hold nevertheless, and ``run`` puts them together.
"""
