"""Our networks beside the public ones in torch: `make parity`. Not collected by `make test`, which checks goldens."""
