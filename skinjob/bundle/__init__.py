"""What carries the environment to a machine without internet: wheels, weights and an installer."""
