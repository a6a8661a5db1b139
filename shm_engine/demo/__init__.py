"""demo - the main job: a pool of agents surveys a source tree through one store.

Why:        it shows the engine at real work, with all its primitives, and checks it: every number
            of the summary comes from the store and must equal a plain recount, and what the agents
            recorded must tell of each file once.
                 run.py         the job from start to end     survey.py   the facts of one file
                 survey_run.py  the run of the whole survey   story.py    its event and traces
                 pool.py        the parent's side of the pool records.py  the layout in the store
                 agent.py       a worker process              results.py  one snapshot's results
                 store.py       the database, killed and      audit.py    events, traces and runs,
                                reopened                                  checked
                 view.py        the live view                 recount.py  the plain recount
                 summary.py     the summary
            Nothing is imported here: a worker process loads agent.py and not the view.
Used by:    shm-engine demo
"""
