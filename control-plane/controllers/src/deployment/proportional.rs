//! Scaling in the middle of a rollout: each ReplicaSet takes its share, so that the risk stays as it was
//! (upstream's `deployment.scale`, "proportional scaling").

use super::rolling::sum;

/// One active ReplicaSet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// `spec.replicas`.
    pub replicas: i32,
    /// How many pods the Deployment allowed when this set was last scaled (annotation `max-replicas`).
    pub allowed_before: Option<i32>,
}

/// The sizes that bring `shares` to `allowed` pods together. `shares` stand in the order in which they take
/// what rounding leaves over: larger sets first. `total_before` stands in for a share that does not know
/// `allowed_before`.
pub(crate) fn sizes(shares: &[Share], desired: i32, allowed: i32, total_before: i32) -> Vec<i32> {
    let to_add = allowed - sum(shares.iter().map(|share| share.replicas));
    let mut added = 0;
    let mut sizes = Vec::with_capacity(shares.len());
    for share in shares {
        let proportion = proportion(*share, desired, allowed, total_before, to_add - added);
        added += proportion;
        sizes.push(share.replicas + proportion);
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + (to_add - added)).max(0);
    }
    sizes
}

fn proportion(share: Share, desired: i32, allowed: i32, total_before: i32, left: i32) -> i32 {
    if share.replicas == 0 || left == 0 {
        return 0;
    }
    let fraction = fraction(share, desired, allowed, total_before);
    if left > 0 {
        fraction.min(left)
    } else {
        fraction.max(left)
    }
}

fn fraction(share: Share, desired: i32, allowed: i32, total_before: i32) -> i32 {
    if desired == 0 {
        return -share.replicas;
    }
    let before = share
        .allowed_before
        .filter(|before| *before > 0)
        .unwrap_or(total_before);
    if before <= 0 {
        return 0;
    }
    let scaled = f64::from(share.replicas) * f64::from(allowed) / f64::from(before);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "saturates, and a ReplicaSet's size is far from the ends"
    )]
    let scaled = scaled.round() as i32;
    scaled - share.replicas
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(shares: &[(i32, i32)], desired: i32, allowed: i32, expected: &[i32]) {
        let shares: Vec<_> = shares
            .iter()
            .map(|&(replicas, before)| Share {
                replicas,
                allowed_before: Some(before),
            })
            .collect();
        assert_eq!(sizes(&shares, desired, allowed, 0), expected);
    }

    #[test]
    fn sets_grow_and_shrink_in_proportion_and_the_first_takes_the_rest() {
        // Rows of upstream's TestScale.
        check(&[(10, 10)], 12, 12, &[12]);
        check(&[(10, 10)], 5, 5, &[5]);
        check(&[(5, 10), (5, 10)], 12, 12, &[6, 6]);
        check(&[(5, 10), (5, 10)], 4, 4, &[2, 2]);
        check(&[(5, 10), (3, 10), (2, 10)], 20, 20, &[10, 6, 4]);
        check(&[(5, 10), (3, 10), (2, 10)], 4, 4, &[2, 1, 1]);
        check(&[(5, 10), (3, 10), (2, 10)], 0, 0, &[0, 0, 0]);
        check(&[(3, 7), (2, 7), (2, 7)], 2, 2, &[0, 1, 1]);
        check(
            &[(5, 10), (5, 10)],
            i32::MAX,
            i32::MAX,
            &[i32::MAX / 2 + 1, i32::MAX / 2],
        );
    }
}
