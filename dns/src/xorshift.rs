//! Numbers that nobody has to be unable to guess (Marsaglia, "Xorshift RNGs", 2003).

/// A sequence of them.
#[derive(Clone, Debug)]
pub(crate) struct Xorshift(u64);

impl Xorshift {
    /// The sequence of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        // Zero would stay zero.
        Self(seed.max(1))
    }

    /// The next one. Its upper bits are the better ones.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// The next one, below `limit`.
    #[cfg(test)]
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
