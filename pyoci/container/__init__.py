"""The lifecycle: the one place that joins deciding (spec, plan) and doing (program, launch).

Each operation is in a module of its own, loaded when it is called: a `start` needs no planner.

    create.create(options)        runtime.md#create: everything but the user's program
    start.start(root, id)         runtime.md#start: let the created container execute its program
    run.run(options)              both at once; unless detached, stay until the end and delete
    execute.exec_(options)        another process in a running container
"""
