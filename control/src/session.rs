//! One connection: who the peer is, the order of its requests, and the last reply, which lies in an arena
//! ([`crate::session_record`]).

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use rnic_abi::{CONTROL_MAGIC, Op, ReplyHeader, RequestHeader};
use rnic_engine::arena::ArenaBox;
use rustix::io::Errno;
use zerocopy::{Immutable, IntoBytes};

use crate::{
    refusal::{Refusal, Verb},
    session_record::SessionRecord,
    socket,
    store::Store,
};

/// The process at the other end, as the kernel says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Process number.
    pub pid: i32,
    /// User.
    pub uid: u32,
    /// Name of the program.
    pub comm: String,
}

impl Peer {
    /// The peer of a connected socket.
    pub fn of(socket: impl AsFd) -> Result<Self, Errno> {
        let credentials = rustix::net::sockopt::socket_peercred(socket)?;
        let pid = credentials.pid.as_raw_nonzero().get();
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Ok(Peer {
            pid,
            uid: credentials.uid.as_raw(),
            comm: comm.trim_end().to_owned(),
        })
    }
}

/// What a verb answers: a body and descriptors.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// The reply body.
    pub body: Vec<u8>,
    /// Descriptors that go with it.
    pub fds: Vec<Arc<OwnedFd>>,
}

impl Reply {
    /// A reply without descriptors.
    pub fn new(body: &(impl IntoBytes + Immutable)) -> Self {
        Reply {
            body: body.as_bytes().to_vec(),
            fds: Vec::new(),
        }
    }

    /// The same with descriptors.
    pub fn with_fds(body: &(impl IntoBytes + Immutable), fds: Vec<Arc<OwnedFd>>) -> Self {
        Reply {
            fds,
            ..Self::new(body)
        }
    }
}

/// What is to be done with a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Admitted {
    /// Carry it out, then [`Session::answer`].
    New,
    /// It was answered before; the answer was sent again.
    Replayed,
}

/// A connection.
#[derive(Debug)]
pub struct Session {
    socket: OwnedFd,
    /// Who it is.
    pub peer: Peer,
    /// The request that is being carried out.
    current: Option<(u64, Op)>,
    /// Descriptors of the last reply.
    fds: Vec<Arc<OwnedFd>>,
    record: ArenaBox<SessionRecord>,
}

impl Session {
    /// A fresh connection with this session number.
    pub fn new(socket: OwnedFd, number: u64, connection: u32, store: &Store) -> Result<Self, Errno> {
        let peer = Peer::of(&socket)?;
        let record = store.sessions.put(SessionRecord::new(number, connection, &peer));
        let record = record.map_err(|error| {
            tracing::error!(%error, "a session has no place in its arena");
            Errno::NOMEM
        })?;
        Ok(Session {
            socket,
            peer,
            current: None,
            fds: Vec::new(),
            record,
        })
    }

    /// The session of another process, over a socket and with the last reply's descriptors of this one.
    pub fn resume(socket: OwnedFd, record: ArenaBox<SessionRecord>, fds: Vec<Arc<OwnedFd>>) -> Self {
        Session {
            socket,
            peer: record.peer(),
            current: None,
            fds,
            record,
        }
    }

    /// Its number, told in the hello's reply.
    pub fn number(&self) -> u64 {
        self.record.number
    }

    /// What of it outlives the process.
    pub fn record(&self) -> &SessionRecord {
        &self.record
    }

    /// The hello succeeds: this is the index of the client on the poll cores.
    pub fn greet(&mut self, client: u32) {
        (self.record.client, self.record.greeted) = (client, true);
    }

    /// Whether a request is being carried out; the next one is left in the socket until it is answered.
    pub fn is_busy(&self) -> bool {
        self.current.is_some()
    }

    /// Decides on a request by its session and sequence.
    pub fn admit(&mut self, header: &RequestHeader, op: Op) -> Verb<Admitted> {
        let sequence = header.sequence;
        let SessionRecord { number, greeted, .. } = *self.record;
        let expected_session = if op == Op::Hello { 0 } else { number };
        if op != Op::Hello && !greeted {
            let name = op.name();
            return Err(Refusal::protocol(format!(
                "{name} came before hello; the first request is hello"
            )));
        }
        if header.session != expected_session {
            let got = header.session;
            return Err(Refusal::protocol(format!(
                "session is {got:#x}; in {} it must be {expected_session:#x}",
                op.name()
            )));
        }
        match self.record.last().map(|kept| kept.sequence) {
            Some(answered) if answered == sequence => {
                self.send_kept();
                return Ok(Admitted::Replayed);
            }
            Some(answered) if answered.checked_add(1) != Some(sequence) => {
                return Err(Refusal::new(
                    Errno::ILSEQ,
                    format!(
                        "sequence is {sequence}; the last request was {answered}, so it must be {} (or {answered} \
                         to have the last reply again)",
                        answered.wrapping_add(1)
                    ),
                ));
            }
            _ => {}
        }
        if op == Op::Hello && greeted {
            return Err(Refusal::new(
                Errno::ISCONN,
                "this connection has said hello before",
            ));
        }
        self.current = Some((sequence, op));
        Ok(Admitted::New)
    }

    /// Answers the request that was admitted, and keeps the reply. An error means that the peer does not read
    /// or is gone.
    pub fn answer(&mut self, result: Verb<Reply>) -> Result<(), Errno> {
        let Some((sequence, op)) = self.current.take() else {
            return Ok(());
        };
        match result {
            Ok(Reply { body, fds }) => {
                self.record.keep(op, sequence, 0, &body, fds.len());
                self.fds = fds;
            }
            Err(refusal) => {
                let status = refusal.errno().raw_os_error();
                self.record
                    .keep(op, sequence, status, refusal.text().as_bytes(), 0);
                self.fds.clear();
            }
        }
        self.send_last()
    }

    /// Answers a request that was not admitted; the order of requests is as if it had not come.
    pub fn refuse(&self, header: Option<&RequestHeader>, refusal: &Refusal) -> Result<(), Errno> {
        let (session, sequence, op) = header.map_or((0, 0, 0), |h| (h.session, h.sequence, h.op));
        let status = refusal.errno().raw_os_error();
        let packet = packet(
            status,
            session,
            sequence,
            u32::from(op),
            refusal.text().as_bytes(),
        );
        socket::send(&self.socket, &packet, &[])
    }

    fn send_kept(&self) {
        // A peer that does not read its replay has the reply in its socket already.
        let _ = self.send_last();
    }

    fn send_last(&self) -> Result<(), Errno> {
        let Some(last) = self.record.last() else {
            return Ok(());
        };
        let fds: Vec<_> = self.fds.iter().map(|fd| fd.as_fd()).collect();
        socket::send(&self.socket, last.packet(), &fds)
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn packet(status: i32, session: u64, sequence: u64, op: u32, body: &[u8]) -> Vec<u8> {
    let magic = CONTROL_MAGIC;
    let header = ReplyHeader {
        magic,
        status,
        session,
        sequence,
        body_len: body.len() as u32,
        op,
    };
    [header.as_bytes(), body].concat()
}

#[cfg(test)]
mod tests {
    use rnic_abi::{ABI_VERSION, HandleReply};
    use zerocopy::FromBytes;

    use super::*;
    use crate::socket::{Packet, Received, pair, receive};

    fn header(op: Op, session: u64, sequence: u64) -> RequestHeader {
        let version = ABI_VERSION as u16;
        RequestHeader {
            magic: CONTROL_MAGIC,
            version,
            op: op as u16,
            session,
            sequence,
            body_len: 0,
            reserved: 0,
        }
    }

    fn reply(socket: &OwnedFd) -> (ReplyHeader, Vec<u8>, usize) {
        let mut packet = Packet::new();
        assert_eq!(receive(socket, &mut packet), Received::Packet);
        let (header, body) = ReplyHeader::read_from_prefix(packet.bytes()).unwrap();
        (header, body.to_vec(), packet.fds.len())
    }

    fn fresh(socket: OwnedFd) -> Session {
        Session::new(socket, 9, 0, &Store::create(1).unwrap()).unwrap()
    }

    fn greeted() -> (Session, OwnedFd) {
        let (ours, theirs) = pair().unwrap();
        let mut session = fresh(ours);
        assert_eq!(
            session.admit(&header(Op::Hello, 0, 1), Op::Hello),
            Ok(Admitted::New)
        );
        session.greet(0);
        session.answer(Ok(Reply::default())).unwrap();
        reply(&theirs);
        (session, theirs)
    }

    #[test]
    fn the_peer_is_this_very_process() {
        let (ours, _theirs) = pair().unwrap();
        assert_eq!(Peer::of(&ours).unwrap().pid, std::process::id() as i32);
    }

    #[test]
    fn a_replayed_request_gets_the_kept_reply_with_its_descriptors() {
        let (mut session, theirs) = greeted();
        let request = header(Op::CreateCompChannel, 9, 2);
        assert_eq!(session.admit(&request, Op::CreateCompChannel), Ok(Admitted::New));
        let fd = Arc::new(pair().unwrap().1);
        let body = HandleReply {
            handle: 5,
            reserved: 0,
        };
        session.answer(Ok(Reply::with_fds(&body, vec![fd]))).unwrap();
        let first = reply(&theirs);
        assert_eq!(
            session.admit(&request, Op::CreateCompChannel),
            Ok(Admitted::Replayed)
        );
        assert_eq!(reply(&theirs), first);
        assert_eq!(first.2, 1);
    }

    #[test]
    fn a_request_out_of_order_is_refused_with_the_number_that_would_be_right() {
        let (mut session, _theirs) = greeted();
        for wrong in [0, 3, 4, u64::MAX] {
            let refusal = session
                .admit(&header(Op::AllocPd, 9, wrong), Op::AllocPd)
                .unwrap_err();
            assert_eq!(refusal.errno(), Errno::ILSEQ);
            assert!(refusal.text().contains("must be 2"), "{}", refusal.text());
            assert!(!session.is_busy());
        }
        assert_eq!(
            session.admit(&header(Op::AllocPd, 9, 2), Op::AllocPd),
            Ok(Admitted::New)
        );
    }

    #[test]
    fn requests_need_a_hello_and_the_right_session() {
        let (ours, _theirs) = pair().unwrap();
        let mut session = fresh(ours);
        let early = session
            .admit(&header(Op::AllocPd, 9, 1), Op::AllocPd)
            .unwrap_err();
        assert!(early.text().contains("before hello"));
        let (mut session, _theirs) = greeted();
        let wrong = session
            .admit(&header(Op::AllocPd, 8, 2), Op::AllocPd)
            .unwrap_err();
        assert!(wrong.text().contains("session is 0x8"), "{}", wrong.text());
        let twice = session.admit(&header(Op::Hello, 0, 2), Op::Hello).unwrap_err();
        assert_eq!(twice.errno(), Errno::ISCONN);
    }

    #[test]
    fn a_failed_request_counts_and_its_text_is_kept() {
        let (mut session, theirs) = greeted();
        session.admit(&header(Op::AllocPd, 9, 2), Op::AllocPd).unwrap();
        session
            .answer(Err(Refusal::invalid("device is 7; there are 2")))
            .unwrap();
        let (head, body, _) = reply(&theirs);
        assert_eq!(
            (head.status, head.sequence, head.op),
            (Errno::INVAL.raw_os_error(), 2, Op::AllocPd as u32)
        );
        assert_eq!(body, b"device is 7; there are 2");
        assert_eq!(
            session.admit(&header(Op::AllocPd, 9, 3), Op::AllocPd),
            Ok(Admitted::New)
        );
    }
}
