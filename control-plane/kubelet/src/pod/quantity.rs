//! Resource quantities (`100m`, `64Mi`, `1e3`), as exactly as a kubelet needs them.

/// A quantity in thousandths, rounded up; `None` when it is not one.
pub fn millis(text: &str) -> Option<i128> {
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-' || c == '+'))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (numerator, denominator): (i128, i128) = match suffix {
        "n" => (1, 1_000_000),
        "u" => (1, 1000),
        "m" => (1, 1),
        "" => (1000, 1),
        "k" => (1_000_000, 1),
        "M" => (1_000_000_000, 1),
        "G" => (1_000_000_000_000, 1),
        "T" => (1_000_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1000 << 10, 1),
        "Mi" => (1000 << 20, 1),
        "Gi" => (1000 << 30, 1),
        "Ti" => (1000 << 40, 1),
        "Pi" => (1000 << 50, 1),
        "Ei" => (1000 << 60, 1),
        "E" => (1_000_000_000_000_000_000_000, 1),
        exponent => {
            let power: u32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            (10_i128.checked_pow(power)?.checked_mul(1000)?, 1)
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let scale = denominator.checked_mul(10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?)?;
    let scaled = digits.checked_mul(numerator)?;
    Some(scaled.div_euclid(scale) + i128::from(scaled.rem_euclid(scale) != 0))
}

/// A quantity in whole units (bytes), rounded up.
pub fn whole(text: &str) -> Option<i64> {
    let millis = millis(text)?;
    i64::try_from(millis.div_euclid(1000) + i128::from(millis.rem_euclid(1000) != 0)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_in_every_notation() {
        for (text, expected) in [
            ("100m", Some(100)),
            ("1", Some(1000)),
            ("1.5", Some(1500)),
            ("0.0005", Some(1)),
            ("64Mi", Some(64 * 1024 * 1024 * 1000)),
            ("1e3", Some(1_000_000)),
            ("100u", Some(1)),
            ("", None),
            ("x", None),
            ("1x", None),
        ] {
            assert_eq!(millis(text), expected, "{text}");
        }
        assert_eq!(whole("1k"), Some(1000));
        assert_eq!(whole("1500m"), Some(2));
    }
}
