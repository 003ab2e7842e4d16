"""Coverage-guided fuzzing: ``python -m tests.fuzz.tar_reader FOLDER``, ``python -m tests.fuzz.load FOLDER``.

Each goes on for ever, or as libFuzzer's options behind the folder say (``-max_total_time=60``, ``-seed=1``). The folder
keeps what was found worth trying again, in ``corpus/``, and what has failed, in ``failed-*``; naming such a file behind
the folder tries that alone. Needs atheris, which has wheels for some Pythons only.
"""
