//! A list threaded through the objects themselves: the way of last resort for retiring, which needs no page.

/// An owned object, in a box of its own say, with room inside it for the next one: what lets any number of them wait
/// without memory for the waiting.
pub trait Linked: Sized {
    /// The room. Empty while the object is in no list.
    fn next(&mut self) -> &mut Option<Self>;
}

/// Objects that wait, linked through themselves; the last one in is the first one out. Belongs to one thread.
///
/// Putting in and taking out moves two handles and never fails, allocates or frees.
#[derive(Debug)]
pub struct EmbeddedList<T: Linked> {
    first: Option<T>,
    len: usize,
}

impl<T: Linked> Default for EmbeddedList<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Linked> EmbeddedList<T> {
    /// An empty list.
    pub const fn new() -> Self {
        Self { first: None, len: 0 }
    }

    /// Number of objects in the list.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is in the list.
    pub const fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Puts `item` in. That it is in no other list is seen to by owning it.
    pub fn push(&mut self, mut item: T) {
        *item.next() = self.first.take();
        self.first = Some(item);
        self.len += 1;
    }

    /// Takes out the object put in last.
    pub fn pop(&mut self) -> Option<T> {
        let mut item = self.first.take()?;
        self.first = item.next().take();
        self.len -= 1;
        Some(item)
    }
}

impl<T: Linked> Drop for EmbeddedList<T> {
    /// One after the other: left to itself, each object would drop the next from within, as deep as the list is long.
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}
