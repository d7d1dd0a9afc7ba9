//! Turns: whose file is judged next, so that one user's flood does not make another wait for all of it.

use std::collections::VecDeque;

/// Things that wait, in the order in which they came for each user; the users take turns.
pub(crate) struct Turns<T> {
    /// Whose turn is next is in front. Nobody is here with nothing.
    users: VecDeque<(u32, VecDeque<T>)>,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { users: VecDeque::new() }
    }
}

impl<T> Turns<T> {
    pub(crate) fn push(&mut self, user: u32, item: T) {
        match self.users.iter_mut().find(|(other, _)| *other == user) {
            Some((_, items)) => items.push_back(item),
            None => self.users.push_back((user, VecDeque::from([item]))),
        }
    }

    /// The next one, whose user then waits for all others.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let (user, mut items) = self.users.pop_front()?;
        let item = items.pop_front();
        if !items.is_empty() {
            self.users.push_back((user, items));
        }
        item
    }

    pub(crate) fn len(&self) -> usize {
        self.users.iter().map(|(_, items)| items.len()).sum()
    }

    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.users.iter_mut().for_each(|(_, items)| items.retain(&mut keep));
        self.users.retain(|(_, items)| !items.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_take_turns() {
        let mut turns = Turns::default();
        for item in 0..5 {
            turns.push(1, (1, item));
        }
        turns.push(2, (2, 0));
        turns.push(3, (3, 0));
        turns.push(2, (2, 1));
        assert_eq!(turns.len(), 8);
        turns.retain(|item| *item != (1, 3));
        let order: Vec<_> = std::iter::from_fn(|| turns.pop()).collect();
        assert_eq!(order, [(1, 0), (2, 0), (3, 0), (1, 1), (2, 1), (1, 2), (1, 4)]);
        assert_eq!(turns.len(), 0);
    }
}
