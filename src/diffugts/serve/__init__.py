"""Segmentation over HTTP, for one machine or one group: jobs in, results out.

One job runs at a time, in a process of its own that keeps the model loaded between jobs; the others wait in
order. Cancelling a job, its time limit and the server's end kill that process, so the computation really stops;
the next job starts a new one. Uploads and results live in one temporary folder that only this user can read, a
folder with a random name per job; it goes when the job is deleted or expires, and with the server.

Nothing that a client sends names a path. Logs hold job ids, states and seconds: no prompt, no file name, no header.
"""
