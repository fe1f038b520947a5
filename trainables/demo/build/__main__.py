"""`python -m trainables.demo.build`: see build.py."""

from trainables.demo.build.build import main

if __name__ == "__main__":
    main()
