//! An intrusive list by slot number: the way of last resort for retiring, which needs no page.

/// The link inside an object that lives in an arena: a plain word, and zeroed memory is a valid unlinked one, so it may
/// be part of a record that outlives the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct EmbeddedLink(u32);

impl EmbeddedLink {
    const FREE: u32 = 0;
    const LAST: u32 = 1;
    /// Slot `n` is stored as `n + BIAS`.
    const BIAS: u32 = 2;

    /// A link that is in no list.
    pub const UNLINKED: Self = Self(Self::FREE);

    /// Whether its object is in a list.
    pub const fn is_linked(self) -> bool {
        self.0 != Self::FREE
    }
}

/// An arena whose objects carry an [`EmbeddedLink`].
pub trait LinkArena {
    /// The link of the object at `slot`, or `None` if there is no such slot.
    fn link(&mut self, slot: u32) -> Option<&mut EmbeddedLink>;
}

/// A FIFO of slots threaded through their objects. Belongs to the thread that owns the arena. Holds two slot numbers,
/// so any number of objects can be put in without allocating.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EmbeddedList {
    ends: Option<(u32, u32)>,
    len: usize,
}

impl EmbeddedList {
    /// An empty list.
    pub const fn new() -> Self {
        Self { ends: None, len: 0 }
    }

    /// Number of objects in the list.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is in the list.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends the object at `slot`. False, and nothing done, if it is in a list already or there is no such slot
    /// (the last two values of `u32` are none): retiring twice is a bug of the caller, not a corrupted list.
    #[must_use]
    pub fn push(&mut self, arena: &mut impl LinkArena, slot: u32) -> bool {
        let Some(word) = slot.checked_add(EmbeddedLink::BIAS) else {
            return false;
        };
        match arena.link(slot) {
            Some(link) if !link.is_linked() => *link = EmbeddedLink(EmbeddedLink::LAST),
            _ => return false,
        }
        let first = match self.ends {
            None => slot,
            Some((first, last)) => {
                if let Some(link) = arena.link(last) {
                    *link = EmbeddedLink(word);
                }
                first
            }
        };
        self.ends = Some((first, slot));
        self.len += 1;
        true
    }

    /// Removes the object that has been in the list the longest.
    pub fn pop(&mut self, arena: &mut impl LinkArena) -> Option<u32> {
        let (first, last) = self.ends?;
        let link = arena.link(first).map(std::mem::take).unwrap_or_default();
        self.ends = link.0.checked_sub(EmbeddedLink::BIAS).map(|next| (next, last));
        self.len = if self.ends.is_some() {
            self.len.saturating_sub(1)
        } else {
            0
        };
        Some(first)
    }

    /// The slot [`pop`](Self::pop) would return.
    pub fn first(&self) -> Option<u32> {
        self.ends.map(|(first, _)| first)
    }
}
