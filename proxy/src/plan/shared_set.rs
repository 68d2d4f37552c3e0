//! Sets that plans keep.

use std::ops::Deref;
use std::sync::Arc;

/// A sorted set that is never changed: one slice, which its copies share. A plan keeps several for each port, of a few
/// members each, and most of them are equal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SharedSet<T>(Arc<[T]>);

impl<T: Ord> SharedSet<T> {
    /// Whether `member` is in it.
    #[must_use]
    pub fn contains(&self, member: &T) -> bool {
        self.0.binary_search(member).is_ok()
    }

    /// Whether all members are in `other` too.
    #[must_use]
    pub fn is_subset(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.iter().all(|member| other.contains(member))
    }
}

impl<T: Ord + Clone> SharedSet<T> {
    /// The members of both.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.iter().chain(other.iter()).cloned().collect()
    }

    /// The first of these that is equal, in place of this one where there is such.
    #[must_use]
    pub fn or_equal(self, others: &[&Self]) -> Self {
        let equal = others.iter().find(|other| ***other == self);
        equal.map_or(self, |other| (*other).clone())
    }
}

impl<T> Deref for SharedSet<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> Default for SharedSet<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Ord> FromIterator<T> for SharedSet<T> {
    fn from_iter<I: IntoIterator<Item = T>>(members: I) -> Self {
        let mut members: Vec<T> = members.into_iter().collect();
        members.sort_unstable();
        members.dedup();
        if members.is_empty() {
            Self::default()
        } else {
            Self(members.into())
        }
    }
}

impl<T: Ord, const N: usize> From<[T; N]> for SharedSet<T> {
    fn from(members: [T; N]) -> Self {
        members.into_iter().collect()
    }
}

impl<T: PartialEq, const N: usize> PartialEq<[T; N]> for SharedSet<T> {
    fn eq(&self, other: &[T; N]) -> bool {
        *self.0 == *other
    }
}

impl<'a, T> IntoIterator for &'a SharedSet<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_sorted_and_each_is_there_once() {
        let set = SharedSet::from([3, 1, 2, 3]);
        assert_eq!(*set, [1, 2, 3]);
        assert!(set.contains(&2) && !set.contains(&4));
        assert!(SharedSet::from([3, 1]).is_subset(&set) && !SharedSet::from([0]).is_subset(&set));
        assert_eq!(set.union(&SharedSet::from([0, 1])), SharedSet::from([0, 1, 2, 3]));
    }

    #[test]
    fn equal_sets_are_kept_once() {
        let (one, other, again) = (SharedSet::from([1]), SharedSet::from([2]), SharedSet::from([1]));
        assert!(Arc::ptr_eq(&again.or_equal(&[&other, &one]).0, &one.0));
    }
}
