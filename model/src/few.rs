//! Lists that mostly have one member, or none.

use std::ops::{Deref, DerefMut};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A list that mostly has one member, which then takes no memory of its own. It has no room to grow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Few<T>(Members<T>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Members<T> {
    One(T),
    /// None, or several.
    Other(Box<[T]>),
}

impl<T> Few<T> {
    /// A list of none.
    #[must_use]
    pub fn none() -> Self {
        Self(Members::Other(Box::default()))
    }

    /// Puts one at the end.
    pub fn push(&mut self, member: T) {
        let members = match std::mem::take(self).0 {
            Members::One(only) => vec![only],
            Members::Other(members) => members.into_vec(),
        };
        *self = members.into_iter().chain([member]).collect();
    }
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self::none()
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.0 {
            Members::One(only) => std::slice::from_ref(only),
            Members::Other(members) => members,
        }
    }
}

impl<T> DerefMut for Few<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match &mut self.0 {
            Members::One(only) => std::slice::from_mut(only),
            Members::Other(members) => members,
        }
    }
}

impl<'a, T> IntoIterator for &'a Few<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'a, T> IntoIterator for &'a mut Few<T> {
    type Item = &'a mut T;
    type IntoIter = std::slice::IterMut<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}

impl<T> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(members: I) -> Self {
        let mut members = members.into_iter();
        Self(match (members.next(), members.next()) {
            (Some(only), None) => Members::One(only),
            (first, second) => Members::Other(first.into_iter().chain(second).chain(members).collect()),
        })
    }
}

impl<T> From<Vec<T>> for Few<T> {
    fn from(members: Vec<T>) -> Self {
        members.into_iter().collect()
    }
}

impl<T, const N: usize> From<[T; N]> for Few<T> {
    fn from(members: [T; N]) -> Self {
        members.into_iter().collect()
    }
}

impl<T: Serialize> Serialize for Few<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Few<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(Self::from)
    }
}

/// A list that mostly has no member, which then takes the memory of a pointer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    from = "Vec<T>",
    into = "Vec<T>",
    bound = "T: Clone + Serialize + for<'a> Deserialize<'a>"
)]
pub struct Seldom<T>(Option<Box<Few<T>>>);

impl<T> Default for Seldom<T> {
    fn default() -> Self {
        Self::none()
    }
}

impl<T> Seldom<T> {
    /// A list of none.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }
}

impl<T> Deref for Seldom<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.0.as_ref().map_or(&[], |members| members)
    }
}

impl<T> DerefMut for Seldom<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.0.as_mut().map_or(&mut [], |members| members)
    }
}

impl<T> FromIterator<T> for Seldom<T> {
    fn from_iter<I: IntoIterator<Item = T>>(members: I) -> Self {
        let members: Few<T> = members.into_iter().collect();
        Self((!members.is_empty()).then(|| Box::new(members)))
    }
}

impl<T> From<Vec<T>> for Seldom<T> {
    fn from(members: Vec<T>) -> Self {
        members.into_iter().collect()
    }
}

impl<T, const N: usize> From<[T; N]> for Seldom<T> {
    fn from(members: [T; N]) -> Self {
        members.into_iter().collect()
    }
}

impl<T: Clone> From<Seldom<T>> for Vec<T> {
    fn from(members: Seldom<T>) -> Self {
        members.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_member_is_kept_in_place() {
        let mut list = Few::none();
        let mut seen = Vec::new();
        for member in [7_u16, 8, 9] {
            list.push(member);
            seen.push((list.to_vec(), matches!(list.0, Members::One(_))));
        }
        assert_eq!(
            seen,
            [(vec![7], true), (vec![7, 8], false), (vec![7, 8, 9], false)]
        );
    }
}
