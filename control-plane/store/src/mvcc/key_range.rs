//! Which keys an operation means.

use std::ops::Bound;

use bytes::Bytes;

/// One key, or the keys from one on up to another (excluded), or all from one on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    start: Bytes,
    end: End,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    Single,
    Before(Bytes),
    Unbounded,
}

impl KeyRange {
    /// Reads the protocol's pair: no `range_end` means the key alone, one zero byte every key from `key` on, anything
    /// else the keys in `[key, range_end)`.
    pub fn from_protocol(key: impl Into<Bytes>, range_end: impl Into<Bytes>) -> Self {
        let range_end = range_end.into();
        let end = match &range_end[..] {
            [] => End::Single,
            [0] => End::Unbounded,
            _ => End::Before(range_end),
        };
        Self {
            start: key.into(),
            end,
        }
    }

    /// The one key.
    pub fn single(key: impl Into<Bytes>) -> Self {
        Self {
            start: key.into(),
            end: End::Single,
        }
    }

    /// Every key that begins with `prefix`.
    pub fn below(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let mut after = start.to_vec();
        let mut end = End::Unbounded;
        while let Some(last) = after.pop() {
            if last < 0xff {
                after.push(last + 1);
                end = End::Before(after.into());
                break;
            }
        }
        Self { start, end }
    }

    /// The key, where the range is one key.
    pub fn as_single(&self) -> Option<&Bytes> {
        matches!(self.end, End::Single).then_some(&self.start)
    }

    /// Whether no key can be in the range.
    pub fn is_empty(&self) -> bool {
        matches!(&self.end, End::Before(end) if *end <= self.start)
    }

    /// Whether the key is in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            End::Single => key == self.start,
            End::Before(end) => key >= &self.start[..] && key < &end[..],
            End::Unbounded => key >= &self.start[..],
        }
    }

    /// Whether every key of this range is in `outer`.
    pub fn is_within(&self, outer: &KeyRange) -> bool {
        match (&self.end, &outer.end) {
            _ if !outer.contains(&self.start) => false,
            (End::Single, _) | (_, End::Unbounded) => true,
            (End::Before(end), End::Before(outer_end)) => end <= outer_end,
            (End::Before(_) | End::Unbounded, _) => false,
        }
    }

    /// The range as bounds for an ordered map; only for a range that is not empty.
    pub fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        let end = match &self.end {
            End::Single => Bound::Included(&self.start[..]),
            End::Before(end) => Bound::Excluded(&end[..]),
            End::Unbounded => Bound::Unbounded,
        };
        (Bound::Included(&self.start[..]), end)
    }
}
