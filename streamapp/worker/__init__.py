"""One GPU worker: the jobs it holds, what joins the engine next, claims, leases, results, status and drain."""
