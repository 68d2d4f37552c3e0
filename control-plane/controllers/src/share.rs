//! Numbers that may also be told as a share of a total: `maxSurge`, `maxUnavailable`, `minAvailable`.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// What becomes of a fraction.
#[derive(Clone, Copy)]
pub(crate) enum Rounding {
    Up,
    Down,
}

/// A number, or a percentage of `total`. What is neither counts as 0; validation does not let it pass.
pub(crate) fn resolve(value: &IntOrString, total: i32, rounding: Rounding) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent: i64 = text
                .strip_suffix('%')
                .and_then(|number| number.parse().ok())
                .unwrap_or(0);
            let hundredfold = percent.saturating_mul(i64::from(total));
            let rounded = match rounding {
                Rounding::Up => hundredfold.saturating_add(99).div_euclid(100),
                Rounding::Down => hundredfold.div_euclid(100),
            };
            i32::try_from(rounded).unwrap_or(i32::MAX)
        }
    }
}
