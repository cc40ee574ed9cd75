"""`python -m deeprecsys` is `deeprecsys`."""

from deeprecsys.cli.main import main

main()
