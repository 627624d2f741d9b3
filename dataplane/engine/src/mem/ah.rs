//! Address handles: preallocated slots, each with one atomic word that says which number is valid, and the
//! resolved path behind it (DESIGN I8).
//!
//! A lookup is: slot of the number, its word (Acquire), compare, copy the path. The control thread may give a
//! valid handle another path (the next hop has a new MAC address) while cores look it up: they find the old path
//! or the new one, never a mixture. Destruction clears the word first; the slot is used again after a grace period.
//!
//! The slots lie in an arena: nothing in them is of one process. The order of stores above is also that in which a killed
//! daemon leaves them whole.
use std::{
    os::fd::{BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use rnic_transport::BadField;

use super::snapshot::Snapshot;
use crate::{
    PORT_SLOTS,
    arena::{ArenaError, ArenaId, AtomicWords, CellTable},
    command::Path,
    view::{SLOT_BITS, generation_of, slot_of},
};

/// Bits of a number.
const NUMBER: u64 = (1 << 24) - 1;
/// The slot is in use.
const VALID: u64 = 1 << 24;
/// Its path leads nowhere any more.
const SEVERED: u64 = 1 << 25;
/// Where the protection domain stands in the word.
const PD_SHIFT: u32 = 32;

/// Words of a packed path.
const WORDS: usize = 7;

#[derive(Default)]
#[repr(C, align(128))]
struct Slot {
    /// PD, flags and number, or zero.
    word: AtomicU64,
    path: Snapshot<WORDS>,
}

// SAFETY: an atomic word and a snapshot, which is `repr(C)` and atomic words; 16 words of 8 bytes fill the 128 bytes it
// is aligned to.
unsafe impl AtomicWords for Slot {}

const _: () = assert!(size_of::<Slot>() == (2 + 2 * WORDS) * size_of::<u64>());

/// All address handles of the daemon, in slots made at start.
pub struct AhTable {
    slots: CellTable<Slot>,
}

/// A valid address handle.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct AhEntry {
    /// Slot and generation, 24 bits.
    pub number: u32,
    /// Protection domain, unique in the daemon.
    pub pd: u32,
    /// Its device is gone.
    pub severed: bool,
    /// Where it leads, or led.
    pub path: Path,
}

/// Why a work request cannot use an address handle.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AhError {
    /// No such handle, or it was destroyed.
    #[error("there is no such address handle")]
    Unknown,
    /// It belongs to another protection domain than the QP.
    #[error("the address handle belongs to another protection domain")]
    PdMismatch,
    /// Its device is gone.
    #[error("the device of the address handle is gone")]
    Severed,
    /// Its path changed over and over while it was copied; the next pass will find it.
    #[error("the path of the address handle is changing")]
    Changing,
}

impl AhTable {
    fn arena(epoch: u64) -> ArenaId {
        ArenaId {
            kind: "ahs",
            owner: 0,
            epoch,
        }
    }

    /// Room for `capacity` handles, at most 2^18, of the daemon whose boot epoch is `epoch`.
    pub fn create(epoch: u64, capacity: u32) -> Result<Self, ArenaError> {
        let slots = CellTable::create(Self::arena(epoch), capacity.min(1 << SLOT_BITS))?;
        Ok(AhTable { slots })
    }

    /// The table another process has left, if every valid handle in it is one.
    pub(crate) fn open(epoch: u64, fd: OwnedFd, capacity: u32) -> Result<Self, ArenaError> {
        let slots = CellTable::open(Self::arena(epoch), fd, capacity.min(1 << SLOT_BITS))?;
        let table = AhTable { slots };
        table.entries()?;
        Ok(table)
    }

    /// Every valid handle, by slot. Control thread.
    ///
    /// # Errors
    /// A slot holds what none of this table's functions has left there.
    pub fn entries(&self) -> Result<Vec<AhEntry>, ArenaError> {
        let arena = self.slots.id();
        let mut found = Vec::new();
        for (slot, ah) in (0..).zip(self.slots.iter()) {
            let word = ah.word.load(Ordering::Acquire);
            if word == 0 {
                continue;
            }
            let number = (word & NUMBER) as u32;
            let known = (word as u32 as u64) & !(NUMBER | VALID | SEVERED) == 0;
            if !known || word & VALID == 0 || slot_of(number) != slot || generation_of(number).is_none() {
                let found = word;
                return Err(ArenaError::State { arena, slot, found });
            }
            let words = ah.path.load().unwrap_or_default();
            let path = unpack(&words);
            let wrong = |field, value, must| {
                let error = BadField { field, value, must };
                Err(ArenaError::Contradiction { arena, slot, error })
            };
            if pack(&path) != words {
                return wrong("path", words[WORDS - 1], "one without bits of no meaning");
            }
            if usize::from(path.port) >= PORT_SLOTS {
                return wrong("path.port", path.port.into(), "the index of a port");
            }
            found.push(AhEntry {
                number,
                pd: (word >> PD_SHIFT) as u32,
                severed: word & SEVERED != 0,
                path,
            });
        }
        Ok(found)
    }

    /// The arena's file.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.slots.fd()
    }

    /// Number of slots.
    pub fn capacity(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Makes `number` (see [`crate::view::number`]) valid for QPs of the protection domain `pd`. Control thread
    /// only; the slot must be free (a grace period after its last invalidation). `false` when there is no such
    /// slot. Uses preallocated state only, as do all functions of this table.
    pub fn validate(&self, number: u32, pd: u32, path: &Path) -> bool {
        let Some(slot) = self.slot(number) else {
            return false;
        };
        slot.path.store(&pack(path));
        let word = u64::from(pd) << PD_SHIFT | VALID | u64::from(number);
        // Release: whoever finds the number finds the path too.
        slot.word.store(word, Ordering::Release);
        true
    }

    /// Gives a valid handle another path. Control thread only; `false` when there is no such handle.
    pub fn repath(&self, number: u32, path: &Path) -> bool {
        let slot = self.valid(number);
        slot.inspect(|slot| slot.path.store(&pack(path))).is_some()
    }

    /// Takes the paths over a port away from all handles: it is gone. They can still be destroyed. Control thread
    /// only.
    pub fn sever_port(&self, port: u16) {
        for slot in self.slots.iter() {
            let valid = slot.word.load(Ordering::Relaxed) & VALID != 0;
            if valid && slot.path.load().is_some_and(|words| unpack(&words).port == port) {
                slot.word.fetch_or(SEVERED, Ordering::AcqRel);
            }
        }
    }

    /// Makes `number` invalid: no later lookup finds it. Its slot is free when a grace period begun after this
    /// call has ended. Control thread only; `false` when it was not valid.
    pub fn invalidate(&self, number: u32) -> bool {
        let slot = self.valid(number);
        slot.inspect(|slot| slot.word.store(0, Ordering::Release))
            .is_some()
    }

    /// The path of a handle, for a QP of the protection domain `pd`. Any thread; without waiting, in a time
    /// that is bounded. A poll core uses it within the pass of the loop that looked it up.
    #[inline]
    pub fn resolve(&self, number: u32, pd: u32) -> Result<Path, AhError> {
        let slot = self.slot(number).ok_or(AhError::Unknown)?;
        let word = slot.word.load(Ordering::Acquire);
        if word & (VALID | NUMBER) != VALID | u64::from(number) {
            return Err(AhError::Unknown);
        }
        if word >> PD_SHIFT != u64::from(pd) {
            return Err(AhError::PdMismatch);
        }
        if word & SEVERED != 0 {
            return Err(AhError::Severed);
        }
        slot.path
            .load()
            .map(|words| unpack(&words))
            .ok_or(AhError::Changing)
    }

    /// The path of a handle of any protection domain. Control thread, which alone changes it.
    pub fn path(&self, number: u32) -> Option<Path> {
        let slot = self.valid(number)?;
        let severed = slot.word.load(Ordering::Relaxed) & SEVERED != 0;
        slot.path.load().filter(|_| !severed).map(|words| unpack(&words))
    }

    #[inline]
    fn slot(&self, number: u32) -> Option<&Slot> {
        self.slots.get(slot_of(number) as usize)
    }

    /// The slot of a number that is valid, as the only thread that changes it sees it.
    fn valid(&self, number: u32) -> Option<&Slot> {
        let valid = VALID | u64::from(number);
        self.slot(number)
            .filter(|slot| slot.word.load(Ordering::Relaxed) & (VALID | NUMBER) == valid)
    }
}

/// A path has a VLAN tag.
const TAGGED: u64 = 1 << 20;
/// It is direct.
const DIRECT: u64 = 1 << 21;

fn pack(path: &Path) -> [u64; WORDS] {
    let half = |ip: &[u8; 16], at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&ip[at..at + 8]);
        u64::from_be_bytes(bytes)
    };
    let mac = |[a, b, c, d, e, f]: [u8; 6], rest: u16| {
        u64::from_be_bytes([0, 0, a, b, c, d, e, f]) << 16 | u64::from(rest)
    };
    let flag = |bit: u64, set: bool| if set { bit } else { 0 };
    [
        half(&path.local_ip, 0),
        half(&path.local_ip, 8),
        half(&path.remote_ip, 0),
        half(&path.remote_ip, 8),
        mac(path.local_mac, path.port),
        mac(path.remote_mac, path.udp_source),
        u64::from(path.flow_label & (TAGGED as u32 - 1))
            | flag(TAGGED, path.vlan.is_some())
            | flag(DIRECT, path.direct)
            | u64::from(path.hop_limit) << 32
            | u64::from(path.traffic_class) << 40
            | u64::from(path.vlan.unwrap_or(0)) << 48,
    ]
}

fn unpack(words: &[u64; WORDS]) -> Path {
    let ip = |high: u64, low: u64| (u128::from(high) << 64 | u128::from(low)).to_be_bytes();
    let mac = |word: u64| {
        let [a, b, c, d, e, f, ..] = word.to_be_bytes();
        [a, b, c, d, e, f]
    };
    let last = words[6];
    Path {
        port: words[4] as u16,
        local_ip: ip(words[0], words[1]),
        remote_ip: ip(words[2], words[3]),
        local_mac: mac(words[4]),
        remote_mac: mac(words[5]),
        vlan: (last & TAGGED != 0).then_some((last >> 48) as u16),
        hop_limit: (last >> 32) as u8,
        traffic_class: (last >> 40) as u8,
        flow_label: (last & (TAGGED - 1)) as u32,
        udp_source: words[5] as u16,
        direct: last & DIRECT != 0,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;
    use crate::view::number;

    /// A path whose every field is made of one byte.
    fn path(byte: u8) -> Path {
        let wide = u16::from_be_bytes([byte; 2]);
        Path {
            port: wide,
            local_ip: [byte; 16],
            remote_ip: [!byte; 16],
            local_mac: [byte; 6],
            remote_mac: [!byte; 6],
            vlan: (byte & 1 == 1).then_some(wide),
            hop_limit: byte,
            traffic_class: !byte,
            flow_label: u32::from(wide),
            udp_source: !wide,
            direct: byte & 2 == 2,
        }
    }

    #[test]
    fn every_field_of_a_path_comes_back_as_it_was() {
        let mut special = path(0);
        special.vlan = Some(0);
        special.flow_label = 0xF_FFFF;
        for path in (0..=255).map(path).chain([special]) {
            assert_eq!(unpack(&pack(&path)), path);
        }
    }

    #[test]
    fn a_handle_is_found_by_its_whole_number_and_its_domain_until_it_is_invalidated() {
        let table = AhTable::create(1, 8).unwrap();
        let (old, new) = (number(5, 1), number(5, 2));
        assert_eq!(table.resolve(old, 7), Err(AhError::Unknown));
        assert!(table.validate(old, 7, &path(1)));
        assert_eq!(table.resolve(old, 7), Ok(path(1)));
        assert_eq!(table.resolve(old, 8), Err(AhError::PdMismatch));
        assert_eq!(table.resolve(new, 7), Err(AhError::Unknown));
        assert_eq!(table.resolve(number(8, 1), 7), Err(AhError::Unknown));
        assert!(
            !table.validate(number(8, 1), 7, &path(1)),
            "there is no such slot"
        );
        assert!(table.repath(old, &path(9)) && !table.repath(new, &path(3)));
        assert_eq!(table.resolve(old, 7), Ok(path(9)));
        assert!(!table.invalidate(new), "another number of the slot");
        assert!(table.invalidate(old) && !table.invalidate(old));
        assert_eq!(table.resolve(old, 7), Err(AhError::Unknown));
        assert!(table.validate(new, 7, &path(2)));
        assert_eq!(
            (table.resolve(old, 7), table.resolve(new, 7)),
            (Err(AhError::Unknown), Ok(path(2)))
        );
    }

    #[test]
    fn a_severed_handle_has_no_path_and_can_still_be_invalidated() {
        let table = AhTable::create(1, 8).unwrap();
        let ah = number(1, 1);
        let other = number(2, 1);
        assert!(table.validate(ah, 7, &path(1)) && table.validate(other, 7, &path(2)));
        table.sever_port(path(1).port);
        assert_eq!(table.path(other), Some(path(2)), "it is of another port");
        assert_eq!(
            (table.resolve(ah, 7), table.path(ah)),
            (Err(AhError::Severed), None)
        );
        assert!(table.invalidate(ah));
        let next = number(1, 2);
        assert!(table.validate(next, 7, &path(2)));
        assert_eq!(
            table.path(next),
            Some(path(2)),
            "the next use of the slot is whole"
        );
    }

    /// A path over a port there may be.
    fn possible(byte: u8) -> Path {
        let port = u16::from(byte) % PORT_SLOTS as u16;
        Path { port, ..path(byte) }
    }

    #[test]
    fn the_next_process_finds_the_same_handles_and_their_paths() {
        let table = AhTable::create(9, 100).unwrap();
        let handles = [number(1, 3), number(2, 1), number(70, 63)];
        for (ah, byte) in handles.into_iter().zip(1..) {
            assert!(table.validate(ah, 7, &possible(byte)));
        }
        assert!(table.validate(number(5, 1), 8, &possible(5)) && table.invalidate(number(5, 1)));
        assert!(table.repath(handles[0], &possible(200)));
        table.sever_port(possible(2).port);
        let entries = table.entries().unwrap();
        let all: Vec<_> = entries
            .iter()
            .map(|ah| (ah.number, ah.severed, ah.path))
            .collect();
        assert_eq!(
            all,
            [
                (handles[0], false, possible(200)),
                (handles[1], true, possible(2)),
                (handles[2], false, possible(3)),
            ]
        );
        let file = table.fd().try_clone_to_owned().unwrap();
        drop(table);
        // With room for more.
        let next = AhTable::open(9, file, 5000).unwrap();
        assert_eq!(next.entries().unwrap(), entries);
        assert_eq!(next.resolve(handles[0], 7), Ok(possible(200)));
        assert_eq!(next.resolve(handles[1], 7), Err(AhError::Severed));
        assert_eq!(next.resolve(number(5, 1), 8), Err(AhError::Unknown));
        assert!(next.validate(number(4999, 1), 7, &possible(1)));
    }

    #[test]
    fn words_that_no_handle_has_are_refused_with_their_place() {
        let cases: [(u64, usize, u64, &str); 7] = [
            // The word itself, xor: no VALID, a bit of no meaning, another slot's number, no generation.
            (VALID, 0, 0, "neither free nor in use"),
            (1 << 26, 0, 0, "neither free nor in use"),
            (1, 0, 0, "neither free nor in use"),
            (u64::from(number(0, 1)), 0, 0, "neither free nor in use"),
            // A word of the path, xor.
            (0, 4, 1 << 7, "path.port"),
            (0, 6, TAGGED, "path"),
            (0, 6, 1 << 22, "path"),
        ];
        for (word, index, bits, says) in cases {
            let table = AhTable::create(9, 4).unwrap();
            assert!(table.validate(number(2, 1), 7, &possible(3)));
            let slot = &table.slots[2];
            slot.word.fetch_xor(word, Ordering::Relaxed);
            let mut words = slot.path.load().unwrap();
            words[index] ^= bits;
            slot.path.store(&words);
            let file = table.fd().try_clone_to_owned().unwrap();
            let error = AhTable::open(9, file, 4).err().unwrap().to_string();
            assert!(
                error.contains("arena ahs.0, slot 2") && error.contains(says),
                "{error}"
            );
        }
    }

    #[test]
    fn a_path_that_changes_while_cores_look_it_up_is_never_torn() {
        let table = AhTable::create(1, 2).unwrap();
        let ah = number(1, 1);
        assert!(table.validate(ah, 7, &path(0)));
        let readers = AtomicU32::new(2);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..200_000 {
                        match table.resolve(ah, 7) {
                            Ok(found) => assert_eq!(found, path(found.hop_limit)),
                            Err(error) => assert_eq!(error, AhError::Changing),
                        }
                    }
                    readers.fetch_sub(1, Ordering::Relaxed);
                });
            }
            let mut round = 0u8;
            while readers.load(Ordering::Relaxed) > 0 {
                round = round.wrapping_add(1);
                assert!(table.repath(ah, &path(round)));
            }
        });
    }
}
