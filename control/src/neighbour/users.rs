//! Who uses which neighbour: lists through links that are made at start, one for each QP and address handle there
//! can be, so that taking a neighbour into use allocates nothing (DESIGN I8).

use crate::objects::Key;

/// What is sent to a neighbour's MAC address.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// A QP.
    Qp(Key),
    /// The address handle with this number.
    Ah(u32),
}

/// Where a user's link stands: QPs by their slots, then address handles by theirs.
pub type Place = u32;

const NONE: u32 = u32::MAX;

#[derive(Copy, Clone, Debug)]
struct Link {
    before: Place,
    after: Place,
    entry: u32,
    user: Option<User>,
}

/// A list of users; its links are elsewhere.
#[derive(Copy, Clone, Debug)]
pub struct List {
    first: Place,
    len: u32,
}

impl Default for List {
    fn default() -> Self {
        List { first: NONE, len: 0 }
    }
}

impl List {
    /// How many there are.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether nobody is in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The links.
#[derive(Debug)]
pub struct Users {
    links: Box<[Link]>,
}

impl Users {
    /// Room for so many users.
    pub fn new(places: u32) -> Self {
        let link = Link {
            before: NONE,
            after: NONE,
            entry: NONE,
            user: None,
        };
        Users {
            links: vec![link; places as usize].into(),
        }
    }

    /// The entry in whose list a user is.
    pub fn entry_of(&self, place: Place) -> Option<u32> {
        let link = self.links.get(place as usize)?;
        link.user.map(|_| link.entry)
    }

    /// Puts a user, who is in no list, into the list of `entry`. `false` when there is no such place.
    pub fn insert(&mut self, list: &mut List, entry: u32, place: Place, user: User) -> bool {
        let Some(link) = self.links.get_mut(place as usize) else {
            return false;
        };
        debug_assert!(link.user.is_none(), "place {place} is in two lists");
        *link = Link {
            before: NONE,
            after: list.first,
            entry,
            user: Some(user),
        };
        if let Some(next) = self.links.get_mut(list.first as usize) {
            next.before = place;
        }
        list.first = place;
        list.len += 1;
        true
    }

    /// Takes a user out of its list, which must be `list`.
    pub fn remove(&mut self, list: &mut List, place: Place) {
        let Some(link) = self
            .links
            .get_mut(place as usize)
            .filter(|link| link.user.is_some())
        else {
            return;
        };
        let Link { before, after, .. } = *link;
        link.user = None;
        match self.links.get_mut(before as usize) {
            Some(before) => before.after = after,
            None => list.first = after,
        }
        if let Some(next) = self.links.get_mut(after as usize) {
            next.before = before;
        }
        list.len -= 1;
    }

    /// The place of someone in a list.
    pub fn first_of(&self, list: &List) -> Option<Place> {
        (!list.is_empty()).then_some(list.first)
    }

    /// Everyone in a list.
    pub fn of(&self, list: &List) -> impl Iterator<Item = User> {
        let mut next = list.first;
        std::iter::from_fn(move || {
            let link = self.links.get(next as usize)?;
            next = link.after;
            link.user
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_come_and_go_in_any_order() {
        let mut users = Users::new(4);
        let mut lists = [List::default(), List::default()];
        for place in 0..4 {
            let entry = place as usize % 2;
            assert!(users.insert(&mut lists[entry], entry as u32, place, User::Ah(place)));
        }
        assert!(
            !users.insert(&mut lists[0], 0, 4, User::Ah(4)),
            "there is no such place"
        );
        let of = |users: &Users, list: &List| {
            let mut all: Vec<_> = users.of(list).collect();
            all.sort_by_key(|user| match user {
                User::Ah(number) => *number,
                User::Qp(_) => 0,
            });
            all
        };
        assert_eq!(of(&users, &lists[0]), [User::Ah(0), User::Ah(2)]);
        users.remove(&mut lists[0], 0);
        users.remove(&mut lists[0], 0);
        assert_eq!((of(&users, &lists[0]), lists[0].len()), (vec![User::Ah(2)], 1));
        assert_eq!((users.entry_of(0), users.entry_of(2)), (None, Some(0)));
        users.insert(&mut lists[1], 1, 0, User::Ah(7));
        assert_eq!(of(&users, &lists[1]), [User::Ah(1), User::Ah(3), User::Ah(7)]);
        for place in [1, 0, 3] {
            users.remove(&mut lists[1], place);
        }
        assert!(lists[1].is_empty() && users.of(&lists[1]).next().is_none());
    }
}
