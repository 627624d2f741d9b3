//! The control requests.
use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rnic_abi::*;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::shm::Mapping;
use super::{Ah, CORES, Client, Cq, DEVICES, Mr, Object, QUEUE_SPACE, Qp, Ring, SLOTS, State, pair, wake};

const BOOT_EPOCH: u64 = 77;

struct Refusal(Errno, String);
type Reply = Result<(Vec<u8>, Vec<OwnedFd>), Refusal>;

fn refuse<T>(errno: Errno, text: &str) -> Result<T, Refusal> {
    Err(Refusal(errno, text.into()))
}

/// A client that has connected; everything it will get at its hello is made now.
pub fn accept(state: &mut State, control: OwnedFd) {
    let layout = RegionLayout::new(SLOTS, CORES, QUEUE_SPACE);
    let file = memfd_create("region", MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&file, layout.size as u64).unwrap();
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).unwrap();
    let region = Mapping::new(&file, layout.size).unwrap();
    region.write(0, layout.header(BOOT_EPOCH).as_bytes());
    let (events, client_events) = pair();
    let (core_wakes, client_wakes): (Vec<_>, Vec<_>) = (0..CORES).map(|_| pair()).unzip();
    let mut client = Client {
        session: state.clients.len() as u64 + 1,
        control,
        region,
        queue_next: layout.queues,
        layout,
        next_slot: 1,
        event_tail: 0,
        events,
        core_wakes,
        objects: BTreeMap::new(),
    };
    // The first request has to be the hello; the socket is not blocking, so wait for it.
    let mut fds = [rustix::event::PollFd::new(
        &client.control,
        rustix::event::PollFlags::IN,
    )];
    rustix::event::poll(&mut fds, None).unwrap();
    let Some((header, _, _)) = receive(&mut client) else {
        return;
    };
    let hello = HelloReply {
        session: client.session,
        boot_epoch: BOOT_EPOCH,
        region_size: client.layout.size as u64,
        devices: DEVICES,
        cores: CORES,
        max_objects: SLOTS,
        reserved: 0,
    };
    let mut fds = vec![file, client_events];
    fds.extend(client_wakes);
    answer(&client, &header, Ok((hello.as_bytes().to_vec(), fds)));
    state.clients.push(client);
}

/// Answers every request that is there; whether there was one.
pub fn serve(state: &mut State) -> bool {
    let mut busy = false;
    for i in 0..state.clients.len() {
        while let Some((header, body, fds)) = receive(&mut state.clients[i]) {
            busy = true;
            let State {
                clients, next_number, ..
            } = &mut *state;
            let reply = handle(&mut clients[i], next_number, &header, &body, fds);
            if let Err(Refusal(_, text)) = &reply {
                state.refused.push(text.clone());
            }
            answer(&state.clients[i], &header, reply);
        }
    }
    let before = state.clients.len();
    state.clients.retain(|client| client.session != 0);
    busy || state.clients.len() != before
}

fn receive(client: &mut Client) -> Option<(RequestHeader, Vec<u8>, Vec<OwnedFd>)> {
    let mut packet = [0; MAX_PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut packet)];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let len = match recvmsg(&client.control, &mut parts, &mut ancillary, flags) {
        Ok(message) => message.bytes,
        Err(Errno::AGAIN) => return None,
        Err(_) => 0,
    };
    if len == 0 {
        // Gone: marked, and removed by the caller.
        client.session = 0;
        return None;
    }
    let fds = ancillary
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
            _ => Vec::new(),
        })
        .collect();
    let (header, body) = RequestHeader::read_from_prefix(&packet[..len]).unwrap();
    assert_eq!(
        (header.magic, u32::from(header.version)),
        (CONTROL_MAGIC, ABI_VERSION)
    );
    assert_eq!(header.body_len as usize, body.len());
    Some((header, body.to_vec(), fds))
}

fn answer(client: &Client, request: &RequestHeader, reply: Reply) {
    let (status, body, fds) = match reply {
        Ok((body, fds)) => (0, body, fds),
        Err(Refusal(errno, text)) => (errno.raw_os_error(), text.into_bytes(), Vec::new()),
    };
    let header = ReplyHeader {
        magic: CONTROL_MAGIC,
        status,
        session: request.session,
        sequence: request.sequence,
        body_len: body.len() as u32,
        op: request.op.into(),
    };
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)));
    }
    let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(&body)];
    let _ = sendmsg(&client.control, &parts, &mut ancillary, SendFlags::NOSIGNAL);
}

fn handle(
    client: &mut Client,
    next_number: &mut u32,
    header: &RequestHeader,
    body: &[u8],
    fds: Vec<OwnedFd>,
) -> Reply {
    fn get<T: FromBytes>(body: &[u8]) -> Result<T, Refusal> {
        T::read_from_bytes(body).or_else(|_| refuse(Errno::INVAL, "wrong length of the body"))
    }
    let done = |bytes: &[u8]| Ok((bytes.to_vec(), Vec::new()));
    let Some(op) = Op::from_u16(header.op) else {
        return refuse(Errno::OPNOTSUPP, "unknown operation");
    };
    match op {
        Op::Hello => refuse(Errno::INVAL, "a second hello"),
        Op::QueryDevice => done(device(get::<DeviceArg>(body)?.device).as_bytes()),
        Op::QueryPort => done(port().as_bytes()),
        Op::QueryGid => {
            let arg = get::<GidArg>(body)?;
            if arg.index > 1 {
                return refuse(Errno::INVAL, "the GID table has 2 entries");
            }
            let mut reply = GidReply {
                kind: 2,
                vlan: 0xFFFF,
                ..GidReply::default()
            };
            if arg.index == 0 {
                reply.gid[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, 1 + arg.device as u8]);
            }
            done(reply.as_bytes())
        }
        Op::AllocPd => {
            let device = get::<DeviceArg>(body)?.device;
            done(client.add(Object::Pd { device }).as_bytes())
        }
        Op::RegMr => reg_mr(client, get(body)?, fds),
        Op::CreateCompChannel => {
            let (ours, theirs) = pair();
            Ok((
                client.add(Object::Channel(ours)).as_bytes().to_vec(),
                vec![theirs],
            ))
        }
        Op::CreateCq => create_cq(client, get(body)?),
        Op::CreateQp => create_qp(client, next_number, get(body)?),
        Op::ModifyQp => modify_qp(client, get(body)?),
        Op::QueryQp => match client.objects.get(&get::<HandleArg>(body)?.handle) {
            Some(Object::Qp(qp)) => done(
                QueryQpReply {
                    attrs: qp.attrs,
                    cause: qp.cause,
                    init: QpInitAttrs {
                        qp_type: 2,
                        sq_units: qp.sq.depth,
                        rq_units: qp.rq.depth,
                        sq_sig_all: qp.sig_all.into(),
                        pd: qp.pd,
                        send_cq: qp.send_cq,
                        recv_cq: qp.recv_cq,
                        srq: 0,
                    },
                }
                .as_bytes(),
            ),
            _ => refuse(Errno::INVAL, "no such QP"),
        },
        Op::CreateAh => create_ah(client, get(body)?),
        Op::AttachMcast | Op::DetachMcast => refuse(Errno::OPNOTSUPP, "no multicast here"),
        Op::OpenXrcd | Op::AllocXrcd | Op::CloseXrcd | Op::CreateXrcSrq | Op::CreateXrcTgt | Op::OpenQp => {
            refuse(Errno::OPNOTSUPP, "no XRC here")
        }
        Op::QueryAh => {
            let handle = get::<HandleArg>(body)?.handle;
            let Some(Object::Ah(ah)) = client.objects.get(&handle) else {
                return refuse(Errno::INVAL, "no such AH");
            };
            let reply = QueryAhReply {
                ah_attr: ah.av,
                ah: handle,
                next_hop: [2, 0, 0, 0, 0, 9],
                reserved: [0; 2],
            };
            done(reply.as_bytes())
        }
        Op::ResizeCq => resize_cq(client, get(body)?),
        Op::ResizeCqDone => {
            let arg = get::<ResizeCqDone>(body)?;
            if arg.wake != 0
                && let Some(Object::Cq(cq)) = client.objects.get(&arg.handle)
                && let Some(Object::Channel(socket)) = client.objects.get(&cq.channel)
            {
                wake(socket);
            }
            done(&[])
        }
        Op::QueryCq => match client.objects.get(&get::<HandleArg>(body)?.handle) {
            Some(Object::Cq(cq)) => done(
                QueryCqReply {
                    depth: cq.depth,
                    subrings: CORES,
                    ..QueryCqReply::default()
                }
                .as_bytes(),
            ),
            _ => refuse(Errno::INVAL, "no such CQ"),
        },
        Op::QueryPkey => done(
            PkeyReply {
                pkey: 0xFFFF,
                reserved: 0,
            }
            .as_bytes(),
        ),
        Op::ModifyCq | Op::QueryRtValues => refuse(Errno::OPNOTSUPP, "not in miniature"),
        Op::CreateSrq | Op::ModifySrq | Op::QuerySrq | Op::DestroySrq => {
            refuse(Errno::OPNOTSUPP, "this daemon in miniature has no SRQs")
        }
        Op::AllocMw | Op::DeallocMw => {
            refuse(Errno::OPNOTSUPP, "this daemon in miniature has no memory windows")
        }
        Op::DeallocPd | Op::DeregMr | Op::DestroyCompChannel | Op::DestroyAh => {
            destroy(client, get::<HandleArg>(body)?.handle)?;
            done(&[])
        }
        Op::DestroyCq | Op::DestroyQp => {
            let events_reported = destroy(client, get::<HandleArg>(body)?.handle)?;
            done(
                DestroyReply {
                    events_reported,
                    reserved: 0,
                }
                .as_bytes(),
            )
        }
    }
}

impl Client {
    fn add(&mut self, object: Object) -> HandleReply {
        let handle = Handle::new(self.next_slot, 1).0;
        assert!(self.next_slot < SLOTS);
        self.next_slot += 1;
        self.objects.insert(handle, object);
        HandleReply { handle, reserved: 0 }
    }

    fn queue_space(&mut self, len: usize) -> usize {
        let offset = self.queue_next;
        self.queue_next = (offset + len).next_multiple_of(LINE);
        assert!(self.queue_next <= self.layout.size);
        offset
    }

    fn ring(&mut self, units: u32) -> Ring {
        let depth = units.next_power_of_two();
        let offset = self.queue_space(work_queue_size(depth));
        // Nobody looks at a new queue until it is kicked.
        self.region
            .u32(offset + RingIndices::NEED_KICK)
            .store(1, std::sync::atomic::Ordering::Relaxed);
        Ring {
            offset,
            depth,
            head: 0,
            seen: 0,
        }
    }
}

fn device(number: u32) -> DeviceReply {
    let mut reply = DeviceReply {
        max_mr_size: 1 << 40,
        max_qp: SLOTS,
        max_qp_wr: 1 << 16,
        max_sge: MAX_SGE as u32,
        max_inline: MAX_INLINE as u32,
        max_cq: SLOTS,
        max_cqe: 1 << 16,
        max_mr: SLOTS,
        max_pd: SLOTS,
        max_qp_rd_atom: 16,
        max_qp_init_rd_atom: 16,
        gids: 2,
        ports: 1,
        ..DeviceReply::default()
    };
    let name = format!("rnic{number}");
    reply.name[..name.len()].copy_from_slice(name.as_bytes());
    reply.fw_ver[..4].copy_from_slice(b"mock");
    reply
}

fn port() -> PortReply {
    PortReply {
        state: 4,
        max_mtu: 5,
        active_mtu: 3,
        link_mtu: 1500,
        gids: 2,
        ..PortReply::default()
    }
}

/// Nobody answers for addresses that end in 99; those in 98 are not known yet.
fn create_ah(client: &mut Client, arg: CreateAh) -> Reply {
    if !matches!(client.objects.get(&arg.pd), Some(Object::Pd { .. })) {
        return refuse(Errno::INVAL, "no such PD");
    }
    match arg.ah_attr.dgid[15] {
        99 => return refuse(Errno::HOSTUNREACH, "nobody answers for it"),
        98 if arg.flags & ah_flags::NON_BLOCKING != 0 => {
            return refuse(Errno::AGAIN, "it is being asked for");
        }
        _ => {}
    }
    let ah = Ah {
        pd: arg.pd,
        av: arg.ah_attr,
    };
    let HandleReply { handle, .. } = client.add(Object::Ah(ah));
    let reply = CreateAhReply { handle, ah: handle };
    Ok((reply.as_bytes().to_vec(), Vec::new()))
}

fn reg_mr(client: &mut Client, arg: RegMr, mut fds: Vec<OwnedFd>) -> Reply {
    let Some(file) = fds.pop() else {
        return refuse(Errno::INVAL, "no descriptor came with the request");
    };
    let seals = fcntl_get_seals(&file).or_else(|_| refuse(Errno::INVAL, "not a memfd"))?;
    if !seals.contains(SealFlags::SHRINK) {
        return refuse(Errno::INVAL, "the memfd is not sealed against shrinking");
    }
    let memory = Mapping::new(&file, arg.length as usize).or_else(|_| refuse(Errno::NOMEM, "mmap"))?;
    let HandleReply { handle, .. } = client.add(Object::Mr(Mr {
        pd: arg.pd,
        memory,
        iova: arg.iova,
        length: arg.length,
        access: arg.access,
    }));
    let reply = RegMrReply {
        handle,
        lkey: handle,
        rkey: handle,
        reserved: 0,
    };
    Ok((reply.as_bytes().to_vec(), Vec::new()))
}

fn create_cq(client: &mut Client, arg: CreateCq) -> Reply {
    let depth = arg.depth.next_power_of_two();
    let offset = client.queue_space(completion_queue_size(depth, CORES));
    let HandleReply { handle, .. } = client.add(Object::Cq(Cq {
        offset,
        depth,
        channel: arg.channel,
        tails: vec![0; CORES as usize],
    }));
    let reply = CreateCqReply {
        handle,
        depth,
        subrings: CORES,
        reserved: 0,
        offset: offset as u64,
    };
    Ok((reply.as_bytes().to_vec(), Vec::new()))
}

/// Goes on in another place; what was left stays in the old one, for the client to read.
fn resize_cq(client: &mut Client, arg: ResizeCq) -> Reply {
    let depth = arg.depth.next_power_of_two();
    let offset = client.queue_space(completion_queue_size(depth, CORES));
    let Client { objects, region, .. } = client;
    let Some(Object::Cq(cq)) = objects.get_mut(&arg.handle) else {
        return refuse(Errno::INVAL, "no such CQ");
    };
    for (i, tail) in (0..).zip(&cq.tails) {
        let ring = offset + cq_subring_offset(depth, i);
        for index in [RingIndices::HEAD, RingIndices::TAIL] {
            region
                .u32(ring + index)
                .store(*tail, std::sync::atomic::Ordering::Release);
        }
    }
    (cq.offset, cq.depth) = (offset, depth);
    let reply = ResizeCqReply {
        offset: offset as u64,
        depth,
        subrings: CORES,
    };
    Ok((reply.as_bytes().to_vec(), Vec::new()))
}

fn create_qp(client: &mut Client, next_number: &mut u32, arg: CreateQp) -> Reply {
    *next_number += 1;
    let qpn = 0x100 + *next_number;
    let (sq, rq) = (client.ring(arg.sq_units), client.ring(arg.rq_units));
    let HandleReply { handle, .. } = client.add(Object::Qp(Box::new(Qp {
        pd: arg.pd,
        qpn,
        send_cq: arg.send_cq,
        recv_cq: arg.recv_cq,
        sig_all: arg.sq_sig_all != 0,
        sq,
        rq,
        attrs: QpAttrs::default(),
        cause: Cause::default(),
        reported: 0,
    })));
    let reply = CreateQpReply {
        handle,
        qpn,
        sq_offset: sq.offset as u64,
        rq_offset: rq.offset as u64,
        sq_depth: sq.depth,
        rq_depth: rq.depth,
        doorbell_block: Handle(handle).slot() % CORES,
        reserved: 0,
    };
    Ok((reply.as_bytes().to_vec(), Vec::new()))
}

fn modify_qp(client: &mut Client, arg: ModifyQp) -> Reply {
    let Client { objects, region, .. } = client;
    let Some(Object::Qp(qp)) = objects.get_mut(&arg.handle) else {
        return refuse(Errno::INVAL, "no such QP");
    };
    use qp_mask::*;
    let (from, to) = (qp.attrs.qp_state, arg.attrs.qp_state);
    let wanted = match (from, to) {
        (0, 1) => PKEY_INDEX | PORT | ACCESS_FLAGS,
        (1, 2) => AV | PATH_MTU | DEST_QPN | RQ_PSN | MAX_DEST_RD_ATOMIC | MIN_RNR_TIMER,
        (2, 3) => SQ_PSN | TIMEOUT | RETRY_CNT | RNR_RETRY | MAX_QP_RD_ATOMIC,
        (_, 0 | 6) => 0,
        _ => return refuse(Errno::INVAL, &format!("no transition from state {from} to {to}")),
    };
    if arg.mask != STATE | wanted {
        return refuse(Errno::INVAL, "wrong attribute mask");
    }
    match to {
        0 => {
            for ring in [&mut qp.sq, &mut qp.rq] {
                ring.head = region.u32(ring.offset).load(std::sync::atomic::Ordering::Acquire);
            }
            qp.attrs = QpAttrs::new_zeroed();
        }
        2 => {
            qp.attrs = QpAttrs {
                qp_access_flags: qp.attrs.qp_access_flags,
                ..arg.attrs
            }
        }
        3 => {
            let QpAttrs {
                qp_state,
                sq_psn,
                timeout,
                retry_cnt,
                rnr_retry,
                max_rd_atomic,
                ..
            } = arg.attrs;
            qp.attrs = QpAttrs {
                qp_state,
                sq_psn,
                timeout,
                retry_cnt,
                rnr_retry,
                max_rd_atomic,
                ..qp.attrs
            };
        }
        1 => qp.attrs = arg.attrs,
        _ => qp.attrs.qp_state = to,
    }
    Ok((Vec::new(), Vec::new()))
}

/// Destroys an object, refusing it while others need it; the events the client took.
fn destroy(client: &mut Client, handle: u32) -> Result<u32, Refusal> {
    let used = client.objects.values().any(|object| match object {
        Object::Mr(mr) => mr.pd == handle,
        Object::Ah(ah) => ah.pd == handle,
        Object::Cq(cq) => cq.channel == handle,
        Object::Qp(qp) => [qp.pd, qp.send_cq, qp.recv_cq].contains(&handle),
        Object::Pd { .. } | Object::Channel(_) => false,
    });
    if used {
        return refuse(Errno::BUSY, "the object is in use");
    }
    match client.objects.remove(&handle) {
        None => refuse(Errno::INVAL, "no such object"),
        Some(Object::Qp(qp)) => Ok(qp.reported - client.withdraw(handle)),
        Some(_) => Ok(0),
    }
}
