"""deeprecsys."""
