"""CRIU: a program that writes processes to files and makes processes of them again (criu(8)); used by nothing else."""
