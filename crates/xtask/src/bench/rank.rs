//! The rank test of Mann and Whitney: how likely two lots of measurements differ as much as these by chance.

/// The two-sided probability, by the normal approximation with the correction for ties; 1 when there is nothing to
/// compare. Both lots should have at least 20 values.
#[expect(clippy::cast_precision_loss, reason = "a few thousand measurements")]
pub(super) fn probability(a: &[f64], b: &[f64]) -> f64 {
    let mut all: Vec<(f64, bool)> =
        a.iter().map(|value| (*value, true)).chain(b.iter().map(|value| (*value, false))).collect();
    all.sort_by(|(x, _), (y, _)| x.total_cmp(y));
    let (n_a, n_b, n) = (a.len() as f64, b.len() as f64, all.len() as f64);
    let (mut ranks_of_a, mut ties) = (0.0, 0.0);
    let mut before = 0;
    for equal in all.chunk_by(|(x, _), (y, _)| x.total_cmp(y).is_eq()) {
        let count = equal.len() as f64;
        // Equal values share the mean of their ranks.
        let rank = before as f64 + f64::midpoint(count, 1.0);
        ranks_of_a += rank * equal.iter().filter(|(_, is_a)| *is_a).count() as f64;
        ties += count.powi(3) - count;
        before += equal.len();
    }
    let u = ranks_of_a - n_a * (n_a + 1.0) / 2.0;
    let variance = n_a * n_b / 12.0 * ((n + 1.0) - ties / (n * (n - 1.0)));
    // Not a number, too, when a lot is empty.
    if variance.is_nan() || variance <= 0.0 {
        return 1.0;
    }
    let z = ((u - n_a * n_b / 2.0).abs() - 0.5).max(0.0) / variance.sqrt();
    tail(z)
}

/// How likely a normal variable is further than `z` from its mean, on either side: `erfc(z / sqrt 2)` by Abramowitz and
/// Stegun 7.1.26, whose error is below 1.5e-7.
fn tail(z: f64) -> f64 {
    let x = z / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let factors = [1.061_405_429, -1.453_152_027, 1.421_413_741, -0.284_496_736, 0.254_829_592];
    let polynomial = factors.iter().fold(0.0, |sum, factor| sum * t + factor) * t;
    (polynomial * (-x * x).exp()).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_tails() {
        for (z, expected) in [(0.0, 1.0), (1.0, 0.317_310_5), (1.959_964, 0.05), (3.290_527, 0.001)] {
            assert!((tail(z) - expected).abs() < 1e-5, "{z}: {}", tail(z));
        }
    }

    #[test]
    fn what_differs_is_told_from_what_does_not() {
        let numbers = |from: u32| (from..from + 30).map(f64::from).collect::<Vec<_>>();
        // All ranks of one lot are below those of the other: U = 0, z = 449.5 / sqrt(30 * 30 * 61 / 12).
        assert!((probability(&numbers(0), &numbers(100)) - 0.0).abs() < 2e-7);
        assert!(probability(&numbers(0), &numbers(0)) > 0.99);
        // Shifted by a third: U = 200, z = 3.6897.
        let shifted = probability(&numbers(0), &numbers(10));
        assert!((shifted - 2.245e-4).abs() < 1e-6, "{shifted}");
        assert_eq!(probability(&[], &[1.0]), 1.0);
        assert_eq!(probability(&[2.0; 5], &[2.0; 5]), 1.0);
    }
}
