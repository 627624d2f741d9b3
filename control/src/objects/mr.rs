//! Memory regions.

use std::os::fd::OwnedFd;

use rnic_abi::{DEREG_NONBLOCK, DeregMr, HandleArg, INVALIDATABLE, RegMr, RegMrReply};
use rnic_engine::{
    mem::{ClientMem, MapError, MrDescriptor, MrTable, page_size},
    view,
};
use rnic_qsbr::Epoch;
use rnic_transport::Access;
use rustix::io::Errno;

use super::{IdKind, Key, Kind, Number, Object, What};
use crate::{
    control::Control,
    dispatch::Outcome,
    mapper::{AT_ONCE, MapRequest},
    ops::Work,
    refusal::{Refusal, Verb},
    session::Reply,
    store::MrPart,
};

/// A memory region.
#[derive(Debug)]
pub struct Mr {
    /// Its PD.
    pub pd: Key,
    /// Slot of its key.
    pub slot: u32,
    /// Its key, local and remote.
    pub key: u32,
    /// Bytes.
    pub length: u64,
    /// Where it lies, and what may be done with it.
    pub part: MrPart,
    /// The epoch after which no core uses the key any more, once a deregistration has made it invalid.
    pub invalidated: Option<Epoch>,
    /// The mapping; poll cores use it as long as the key is valid, and a grace period longer.
    pub mem: ClientMem,
}

/// A registration whose memory is being mapped. It holds its PD and its quota.
#[derive(Debug)]
pub struct Mapping {
    device: u32,
    pd: Key,
    pd_number: u32,
    part: MrPart,
    length: u64,
}

/// `IBV_ACCESS_OPTIONAL_RANGE`: hints that a device may ignore.
const OPTIONAL: u32 = 0x3FF0_0000;
/// Rights that demand the local right to write (10.6.3.1).
const REMOTE_CHANGES: u32 = 2 | 8;
/// Largest page of a client's memory.
const MAX_PAGE: u64 = 2 << 20;

/// The rights of a region or a QP.
pub(crate) fn rights(field: &str, bits: u32) -> Verb<Access> {
    const REFUSED: Access = Access::ZERO_BASED.union(Access::FLUSH_PERSISTENT);
    let access = Access::from_bits(bits).filter(|access| access.bits() & REFUSED.bits() == 0);
    access.ok_or_else(|| {
        let why = match bits & u32::from(Access::FLUSH_PERSISTENT.bits()) {
            0 => "",
            _ => ". FLUSH_PERSISTENT (0x200) cannot be granted: the memory is volatile, and nothing outlives a loss of power",
        };
        Refusal::unsupported(format!(
            "{field} is {bits:#x}; LOCAL_WRITE, REMOTE_WRITE, REMOTE_READ, REMOTE_ATOMIC, MW_BIND (0x1f) and FLUSH_GLOBAL \
             (0x100) are supported{why}"
        ))
    })
}

/// The rights that are asked for, and whether the key may be invalidated.
fn access(bits: u32) -> Verb<(Access, bool)> {
    let (bits, invalidatable) = (bits & !INVALIDATABLE, bits & INVALIDATABLE != 0);
    let access = rights("access", bits & !OPTIONAL)?;
    if bits & REMOTE_CHANGES != 0 && !access.contains(Access::LOCAL_WRITE) {
        return Err(Refusal::invalid(format!(
            "access is {bits:#x}: REMOTE_WRITE and REMOTE_ATOMIC need LOCAL_WRITE (0x1) as well"
        )));
    }
    Ok((access, invalidatable))
}

/// Pages that turn out not to be there are replaced by zeros, which is done for 4 KiB and 2 MiB.
fn check_pages(fd: &OwnedFd) -> Verb<()> {
    let page = page_size(fd).map_err(|errno| Refusal::new(errno, "reg_mr: fstatfs of the memfd"))?;
    if page > MAX_PAGE {
        return Err(Refusal::unsupported(format!(
            "the memfd has pages of {page} bytes; at most {MAX_PAGE} are supported"
        )));
    }
    Ok(())
}

fn errno(error: &MapError) -> Errno {
    match error {
        MapError::NotMemfd(_) => Errno::BADF,
        MapError::NotSealed => Errno::PERM,
        MapError::Range { .. } | MapError::Alignment { .. } => Errno::INVAL,
        MapError::TooMany => Errno::NOMEM,
        MapError::Io(errno) => *errno,
    }
}

impl Control {
    pub(crate) fn reg_mr(&mut self, conn: u32, arg: &RegMr, fd: OwnedFd) -> Verb<Outcome> {
        self.check_present_for(conn, arg.pd)?;
        self.allow(conn, Kind::Mr)?;
        let (access, invalidatable) = access(arg.access)?;
        if arg.iova.checked_add(arg.length).is_none() {
            let RegMr { iova, length, .. } = arg;
            return Err(Refusal::invalid(format!(
                "iova {iova:#x} and length {length} overflow 64 bits"
            )));
        }
        check_pages(&fd)?;
        let client = self.client_mut(conn)?;
        let fault = client.fault.clone();
        let usage = client.usage.clone();
        self.quota.check_registered(&usage, arg.length)?;
        let (pd, device) = self.hold(conn, Kind::Pd, arg.pd, "pd")?;
        let Some(pd_number) = self.pd_number(pd) else {
            self.objects.put(pd);
            return Err(Refusal::invalid("pd is being deallocated"));
        };
        if let Ok(client) = self.client_mut(conn) {
            client.usage.register(arg.length);
        }
        let request = MapRequest {
            fd,
            offset: arg.fd_offset,
            length: arg.length,
            fault,
        };
        let mapping = Mapping {
            device,
            pd,
            pd_number,
            part: MrPart {
                iova: arg.iova,
                offset: arg.fd_offset,
                access,
                invalidatable,
            },
            length: arg.length,
        };
        if arg.length <= AT_ONCE {
            return self
                .region_mapped(conn, mapping, request.run())
                .map(Outcome::Done);
        }
        let op = self.begin(conn, Work::Map(mapping));
        self.mapper.map(op, request);
        Ok(Outcome::Pending)
    }

    /// Deregisters a region: makes its key invalid at once, whatever else the destruction has to wait for, and
    /// ends when no core can touch its memory any more. The non-blocking form does not wait for the cores:
    /// [`DEREG_NONBLOCK`].
    pub(crate) fn dereg_mr(&mut self, conn: u32, arg: &DeregMr) -> Verb<Outcome> {
        let DeregMr { handle, flags } = *arg;
        if flags & !DEREG_NONBLOCK != 0 {
            return Err(Refusal::invalid(format!(
                "flags is {flags:#x}; {DEREG_NONBLOCK:#x} (NONBLOCK) or 0 are known"
            )));
        }
        let key = self.find(conn, Kind::Mr, handle, "handle")?;
        let Some(What::Mr(mr)) = self.objects.peek_mut(key).map(|object| &mut object.what) else {
            return Err(Refusal::invalid("handle is of no MR"));
        };
        // Windows are no objects that depend on it, since work requests bind them. What follows cannot be refused.
        if !self.engine.mrs().close(mr.key) {
            return Err(Refusal::new(
                Errno::BUSY,
                "memory windows are bound to the region; invalidate, rebind or deallocate them first",
            ));
        }
        let epoch = *mr
            .invalidated
            .get_or_insert_with(|| self.engine.invalidate(mr.key));
        if flags & DEREG_NONBLOCK != 0 && !self.engine.is_past(epoch) {
            return Err(Refusal::again(
                "the key is invalid now, but poll cores may still use the memory; repeat the request",
            ));
        }
        self.destroy_one(conn, Kind::Mr, HandleArg { handle, reserved: 0 })
    }

    /// Makes the region of a finished mapping.
    pub(crate) fn region_mapped(
        &mut self,
        conn: u32,
        mapping: Mapping,
        result: Result<ClientMem, MapError>,
    ) -> Verb<Reply> {
        let Mapping { pd, length, .. } = mapping;
        let made = result
            .map_err(|error| Refusal::new(errno(&error), format!("reg_mr: {error}")))
            .and_then(|mem| self.make_region(conn, mapping, mem));
        if made.is_err() {
            self.objects.put(pd);
            if let Ok(client) = self.client_mut(conn) {
                client.usage.deregister(length);
            }
        }
        made
    }

    fn make_region(&mut self, conn: u32, mapping: Mapping, mem: ClientMem) -> Verb<Reply> {
        let full = || Refusal::exhausted("no key is free in the daemon; deregister memory regions first");
        let Number { slot, generation } = self.numbers.keys.take().ok_or_else(full)?;
        let handle = match self.take_handle(conn) {
            Ok(handle) => handle,
            Err(refusal) => {
                self.numbers.keys.give(slot);
                return Err(refusal);
            }
        };
        let key = MrTable::key(slot, generation, self.next_key_byte());
        let Mapping {
            device,
            pd,
            pd_number,
            part,
            length,
        } = mapping;
        let descriptor = MrDescriptor {
            mem: &mem,
            pd: pd_number,
            access: part.access,
            iova: part.iova,
            len: length,
            invalidatable: part.invalidatable,
        };
        let valid = self.engine.mrs().validate(key, &descriptor);
        debug_assert!(valid, "the slot exists and the mapping is as long as asked for");
        let what = What::Mr(Mr {
            pd,
            slot,
            key,
            length,
            part,
            invalidated: None,
            mem,
        });
        let id = (IdKind::Number(view::Kind::Mr), view::number(slot, generation));
        self.publish(Object::new(conn, handle, device, what), Some(id));
        Ok(Reply::new(&RegMrReply {
            handle: handle.0,
            lkey: key,
            rkey: key,
            reserved: 0,
        }))
    }

    pub(super) fn pd_number(&self, key: Key) -> Option<u32> {
        match &self.objects.peek(key)?.what {
            What::Pd(pd) => Some(pd.number),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remote_writing_needs_local_writing_and_hints_are_ignored() {
        let bits = |bits| access(bits).map(|(access, invalidatable)| (access.bits(), invalidatable));
        assert_eq!(bits(0xF), Ok((0xF, false)));
        assert_eq!(bits(0x10_0004), Ok((4, false)), "relaxed ordering is a hint");
        assert_eq!(bits(INVALIDATABLE | 1), Ok((1, true)));
        assert!(access(2).unwrap_err().text().contains("LOCAL_WRITE"));
        assert!(access(8).is_err());
        assert_eq!(access(0x20).unwrap_err().errno(), Errno::OPNOTSUPP, "zero based");
        assert_eq!(bits(0x110), Ok((0x110, false)), "windows and FLUSH");
        let persistent = access(0x200).unwrap_err();
        assert_eq!(persistent.errno(), Errno::OPNOTSUPP);
        assert!(persistent.text().contains("volatile"), "{}", persistent.text());
    }
}
