//! Numbers of objects: a slot, and a generation that tells its users apart (DESIGN I4).

use std::collections::VecDeque;

/// A slot that was handed out, with the generation of this use.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Number {
    /// Index, dense from the first slot on.
    pub slot: u32,
    /// Counts the uses of the slot, from 1. Whoever packs it into a number cuts off what does not fit.
    pub generation: u32,
}

/// Hands out slots. A slot that comes back waits behind all that came back before it, and is not taken again
/// as long as few are waiting and fresh ones remain: a number returns late.
#[derive(Debug)]
pub struct Numbers {
    first: u32,
    limit: u32,
    /// Each slot that was ever used.
    slots: Vec<Slot>,
    free: VecDeque<u32>,
}

/// The slot of a number.
#[derive(Copy, Clone, Debug, Default)]
struct Slot {
    generation: u32,
    taken: bool,
}

/// Slots that wait, as long as there are fresh ones.
const WAITING: usize = 32;

impl Numbers {
    /// Slots `first..limit`.
    pub fn new(first: u32, limit: u32) -> Self {
        Numbers {
            first,
            limit,
            slots: Vec::new(),
            free: VecDeque::new(),
        }
    }

    /// The next slot; `None` when all are in use.
    pub fn take(&mut self) -> Option<Number> {
        let fresh = self.first + self.slots.len() as u32;
        let slot = if self.free.len() > WAITING || fresh >= self.limit {
            self.free.pop_front()?
        } else {
            self.slots.push(Slot::default());
            fresh
        };
        let Slot { generation, taken } = &mut self.slots[(slot - self.first) as usize];
        *taken = true;
        // Zero stays free for numbers of another sort, whatever width the generation is cut to.
        *generation = generation.wrapping_add(1);
        if generation.is_multiple_of(64) {
            *generation += 1;
        }
        Some(Number {
            slot,
            generation: *generation,
        })
    }

    /// Takes a slot back, a grace period after its object was unpublished. One that is not out stays where it is: given
    /// twice it would have two owners.
    pub fn give(&mut self, slot: u32) {
        let place = slot.checked_sub(self.first).map(|index| index as usize);
        let taken = place.and_then(|index| self.slots.get_mut(index));
        let was_taken = taken.is_some_and(|slot| std::mem::take(&mut slot.taken));
        debug_assert!(was_taken, "slot {slot} came back twice, or was never out");
        if was_taken {
            self.free.push_back(slot);
        }
    }

    #[cfg(test)]
    pub fn used(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_come_back_in_the_order_they_were_given_and_late() {
        let mut numbers = Numbers::new(2, 2 + 64);
        let first = numbers.take().unwrap();
        assert_eq!(
            first,
            Number {
                slot: 2,
                generation: 1
            }
        );
        numbers.give(first.slot);
        let others: Vec<_> = (0..63).map(|_| numbers.take().unwrap()).collect();
        assert!(
            others.iter().all(|n| n.slot != 2),
            "a slot was taken again though fresh ones remained"
        );
        for number in &others[..3] {
            numbers.give(number.slot);
        }
        assert_eq!(
            numbers.take(),
            Some(Number {
                slot: 2,
                generation: 2
            })
        );
        assert_eq!(numbers.take().unwrap().slot, others[0].slot);
        assert_eq!(numbers.take().unwrap().slot, others[1].slot);
        assert_eq!(numbers.take().unwrap().slot, others[2].slot);
        assert_eq!(numbers.take(), None);
        assert_eq!(numbers.used(), 64);
    }

    #[test]
    fn a_generation_is_never_zero_even_when_cut_to_six_bits() {
        let mut numbers = Numbers::new(0, 1);
        for _ in 0..200 {
            let number = numbers.take().unwrap();
            assert_ne!(number.generation & 63, 0);
            numbers.give(number.slot);
        }
    }
}
