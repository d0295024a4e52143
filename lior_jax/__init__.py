"""Learning without back-propagation: a language model of Hamiltonian flows on a learned Riemannian manifold."""
