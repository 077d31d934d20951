"""Which tokens each step computes, in integers alone. `scheduler.Scheduler` is the way in.

pages      one group's pages: free, live, how many hold each
groups     the pages of all groups: what a sequence needs, gets, and leaves behind its window
sequence   the record of one request
roster     who waits and who runs, in which row; who is preempted
admission  who is admitted: the headroom that a newcomer must leave
ending     when a sequence ends
draft      a step while it is planned
scheduler  plan a step, commit its result
"""
