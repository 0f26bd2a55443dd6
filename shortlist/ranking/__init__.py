"""In what order? Scorers: the linear baseline, gradient-boosted trees and deep cross networks."""
