//! Awaiting a condition. A test that sleeps is slow where it passes and wrong where the machine is busy.

use std::fmt::Debug;
use std::thread;
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_millis(20);

/// Asks until the answer is `Ok`, and returns it.
///
/// # Panics
/// When the deadline passes; tells what was seen last.
#[track_caller]
pub fn until<T, E: Debug>(what: &str, timeout: Duration, mut probe: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + timeout;
    loop {
        match probe() {
            Ok(value) => return value,
            Err(seen) if Instant::now() >= deadline => {
                panic!("not within {timeout:?}: {what}; last seen: {seen:?}")
            }
            Err(_) => thread::sleep(INTERVAL),
        }
    }
}

/// Asks until the observed value satisfies the condition, and returns the value.
///
/// # Panics
/// When the deadline passes; tells the value that was seen last.
#[track_caller]
pub fn until_value<T: Debug>(
    what: &str,
    timeout: Duration,
    mut observe: impl FnMut() -> T,
    mut condition: impl FnMut(&T) -> bool,
) -> T {
    until(what, timeout, || {
        let value = observe();
        if condition(&value) { Ok(value) } else { Err(value) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_comes_true_returns_its_value() {
        let mut count = 0;
        let value = until_value(
            "count",
            Duration::from_secs(5),
            || {
                count += 1;
                count
            },
            |count| *count == 3,
        );
        assert_eq!(value, 3);
    }

    #[test]
    #[should_panic(expected = "not within 1ms: never; last seen: \"nothing\"")]
    fn a_deadline_tells_what_was_seen_last() {
        until("never", Duration::from_millis(1), || Err::<(), _>("nothing"));
    }
}
