//! Which arm is measured when.

/// The order of a round: every arm forwards, then backwards. A drift within the round takes the two blocks of each arm
/// together as much as those of any other.
pub fn order(arms: usize) -> impl Iterator<Item = usize> {
    (0..arms).chain((0..arms).rev())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blocks_of_each_arm_have_the_same_middle() {
        for arms in 1..6 {
            let order: Vec<usize> = order(arms).collect();
            for arm in 0..arms {
                let places = order.iter().enumerate().filter(|(_, found)| **found == arm);
                let sum: usize = places.map(|(place, _)| place).sum();
                assert_eq!(sum, 2 * arms - 1, "{arm} of {arms}");
            }
        }
    }
}
