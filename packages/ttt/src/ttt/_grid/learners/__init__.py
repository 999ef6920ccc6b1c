"""Learners that are trained on one task: randomised trees and a small net."""
