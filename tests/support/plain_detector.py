"""The detector's recursion as plain loops, from the formulas of its specification: for tests to compare with."""

from math import exp, log, sqrt

LAMBDAS = (0.25, 0.5, 1.0, 2.0, 4.0)


class PlainContrast:
    """One contrast, with known parameters: location, tau2, rho, s, floor."""

    def __init__(self, mu, tau2, mean_rows, rho, s, marginal, floor, cap):
        self.mu, self.tau2, self.mean_rows, self.rho = mu, tau2, mean_rows, rho
        self.s, self.marginal, self.floor, self.cap = s, marginal, floor, cap
        self.gaps = [g * sqrt((tau2 + 1 / mean_rows) * s) for g in LAMBDAS]
        self.m = {(sign, g): 0.0 for sign in (1, -1) for g in range(5)}
        self.last = None

    def see(self, x, n, h=1.0):
        """Read one window, at an hour when variance is h times the usual; return the mean of M."""
        r = x - self.mu
        if self.last is None:
            e, d, inflation = r, self.floor, self.marginal
        else:
            e, d, inflation = r - self.rho * self.last, self.floor * (1 - self.rho), self.s
        self.last = r
        if n >= self.mean_rows:
            v = self.tau2 + 1 / n
        else:
            v = (self.tau2 + 1 / self.mean_rows) * self.mean_rows / n
        for (sign, place), before in self.m.items():
            g = self.gaps[place]
            ratio = g * (sign * e - d - g / 2) / (v * inflation * h)
            self.m[sign, place] = min((1 + before) * exp(min(ratio, self.cap)), 1e30)
        return sum(self.m.values()) / len(self.m)


def plain_cap(heaviest, windows_per_alarm, min_windows):
    """The most that one window may add."""
    return log(windows_per_alarm / (heaviest / 10)) / min_windows + 0.5
