//! Durations as people write them: `10ms`, `1h 30m`.

use std::fmt;
use std::time::Duration;

use jiff::SignedDuration;
use serde::de::{Error, Visitor};
use serde::{Deserializer, Serializer};

/// Writes the text form.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    let signed = SignedDuration::try_from(*duration).map_err(serde::ser::Error::custom)?;
    serializer.collect_str(&format_args!("{signed:#}"))
}

/// Reads the text form. None is negative.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    deserializer.deserialize_str(Text)
}

/// An error that arises here is told with its place in the file.
struct Text;

impl Visitor<'_> for Text {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration like 10ms or 1h 30m")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Duration, E> {
        let signed = text.parse::<SignedDuration>().ok();
        signed
            .and_then(|signed| signed.try_into().ok())
            .ok_or_else(|| E::custom(format_args!("{text:?} is not a duration like 10ms or 1h 30m")))
    }
}
