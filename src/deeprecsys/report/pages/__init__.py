"""A page a kind of result: `body` of each file says what is on it, from the top.

All take (summary, records, requests) and answer HTML and sections; what several of them show is
in `report/parts/`.
"""
