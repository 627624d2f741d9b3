//! Multicast groups of UD QPs (IBTA 10.5.2, 11.3).

use rnic_abi::McastArg;
use rnic_engine::mem::{Attachment, MAX_MCAST_QP_ATTACH, MAX_TOTAL_MCAST_QP_ATTACH};
use rnic_transport::QpType;
use rustix::io::Errno;

use super::{Key, Kind, What};
use crate::{
    control::Control,
    device::Gid,
    refusal::{Refusal, Verb},
    session::Reply,
};

impl Control {
    /// Attaches a UD QP to a group. Attaching it again changes nothing.
    pub(crate) fn attach_mcast(&mut self, conn: u32, arg: &McastArg) -> Verb<Reply> {
        let (key, attachment) = self.attachment(conn, arg)?;
        self.check_present(conn, attachment.port.into())?;
        if self.groups(key).is_some_and(|groups| groups.contains(&arg.mgid)) {
            return Ok(Reply::default());
        }
        if !self.engine.mcast().attach(&attachment) {
            return Err(Refusal::exhausted(format!(
                "attach_mcast: a group has {MAX_MCAST_QP_ATTACH} QPs of a port at most, the daemon \
                 {MAX_TOTAL_MCAST_QP_ATTACH} attachments"
            )));
        }
        if let Some(groups) = self.groups_mut(key) {
            groups.push(arg.mgid);
        }
        self.slow.join(attachment.port, Gid(arg.mgid).ip());
        Ok(Reply::default())
    }

    /// Detaches it.
    pub(crate) fn detach_mcast(&mut self, conn: u32, arg: &McastArg) -> Verb<Reply> {
        let (key, attachment) = self.attachment(conn, arg)?;
        let groups = self.groups_mut(key);
        let at = groups.and_then(|groups| Some((groups.iter().position(|of| *of == arg.mgid)?, groups)));
        let Some((at, groups)) = at else {
            return Err(Refusal::invalid(format!(
                "mgid: the QP is not attached to {}",
                Gid(arg.mgid).ip()
            )));
        };
        groups.swap_remove(at);
        self.detach(&attachment);
        Ok(Reply::default())
    }

    /// The QP of a request, and its attachment.
    fn attachment(&mut self, conn: u32, arg: &McastArg) -> Verb<(Key, Attachment)> {
        let key = self.find(conn, Kind::Qp, arg.handle, "handle")?;
        let object = self.objects.peek(key);
        let Some((What::Qp(qp), device)) = object.map(|object| (&object.what, object.device)) else {
            return Err(Refusal::invalid("handle is of no QP"));
        };
        if qp.qp_type != QpType::Ud {
            return Err(Refusal::invalid(format!(
                "handle is of a QP of type {}; only UD QPs take part in multicast",
                qp.qp_type
            )));
        }
        let group = Gid(arg.mgid).ip();
        if !group.is_multicast() {
            return Err(Refusal::invalid(format!(
                "mgid is {group}, which is no multicast address"
            )));
        }
        let attachment = Attachment {
            port: device as u16,
            mgid: arg.mgid,
            qpn: qp.qpn,
        };
        Ok((key, attachment))
    }

    fn detach(&mut self, attachment: &Attachment) {
        self.engine.mcast().detach(attachment);
        let Attachment { port, mgid, .. } = attachment;
        if self.engine.mcast().attached(*port, mgid).is_empty() {
            self.slow.leave(*port, Gid(*mgid).ip());
        }
    }

    /// Detaches a QP that is being destroyed with its client.
    pub(crate) fn detach_all(&mut self, key: Key) {
        let Some(object) = self.objects.peek_mut(key) else {
            return;
        };
        let port = object.device as u16;
        let What::Qp(qp) = &mut object.what else { return };
        let qpn = qp.qpn;
        for mgid in std::mem::take(&mut qp.groups) {
            self.detach(&Attachment { port, mgid, qpn });
        }
    }

    /// Refuses to destroy a QP that is attached to a group.
    pub(crate) fn refuse_attached(&self, key: Key) -> Verb<()> {
        match self.groups(key) {
            Some([_, ..]) => Err(Refusal::new(
                Errno::BUSY,
                "destroy_qp: the QP is attached to multicast groups; detach it first",
            )),
            _ => Ok(()),
        }
    }

    fn groups(&self, key: Key) -> Option<&[[u8; 16]]> {
        match &self.objects.peek(key)?.what {
            What::Qp(qp) => Some(&qp.groups),
            _ => None,
        }
    }

    fn groups_mut(&mut self, key: Key) -> Option<&mut Vec<[u8; 16]>> {
        match &mut self.objects.peek_mut(key)?.what {
            What::Qp(qp) => Some(&mut qp.groups),
            _ => None,
        }
    }
}
