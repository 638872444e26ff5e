"""`python -m kvstore` is `kvstore`."""

from kvstore.entry import main

main()
