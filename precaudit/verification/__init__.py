"""What paired training runs say of a plan: statistics, gates and the verdict."""
