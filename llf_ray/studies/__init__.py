"""What a person asks of jobs: what will this do, what will it cost, which schedule is better."""
