//! The admin socket: `rnicctl` sends one JSON request a line and gets one JSON response a line.

use std::{
    collections::{HashMap, VecDeque},
    os::fd::OwnedFd,
};

use rnic_engine::command::QpStatus;
use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    control::Control,
    install::Told,
    objects::Key,
    poller::{Interest, Source},
    res::{ResPage, ResQuery},
};

/// Longest request.
const MAX_REQUEST: usize = 64 << 10;

/// A request of `rnicctl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum AdminRequest {
    /// Answered by [`crate::status::Status`].
    Status,
    /// Answered by a list of [`crate::status::DeviceState`].
    Dev,
    /// Answered by a list of [`crate::status::QpState`].
    Qp,
    /// Answered by a list of [`crate::res::ResSummary`].
    Res,
    /// Answered by a [`crate::res::ResPage`].
    ResShow(ResQuery),
    /// Answered by a list of [`crate::status::GidState`].
    Gid,
    /// Answered by a list of [`crate::status::NeighbourState`].
    Neigh,
    /// Adds ports. Answered by a list of [`crate::hotplug::PortChange`] when they can be used.
    PortAdd {
        /// YAML: one port as in the configuration, a list of them, or a map with `ports`.
        ports: String,
    },
    /// Removes a port. Answered by a [`crate::hotplug::PortChange`] when all of it is gone.
    PortRemove {
        /// Name of the port.
        name: String,
    },
}

/// A response: `{"ok": …}` or `{"error": "…"}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdminResponse {
    /// What was asked for.
    Ok(Value),
    /// Why not.
    Error(String),
}

/// A connection of `rnicctl`.
pub struct AdminConnection {
    socket: OwnedFd,
    input: Vec<u8>,
    output: Vec<u8>,
    /// A request is being carried out; the next one waits.
    pub(crate) busy: bool,
}

impl AdminConnection {
    /// A fresh connection.
    pub fn new(socket: OwnedFd) -> Self {
        AdminConnection {
            socket,
            input: Vec::new(),
            output: Vec::new(),
            busy: false,
        }
    }

    /// Takes what has come in; `false` when the peer is gone or talks too much.
    fn fill(&mut self) -> bool {
        let mut chunk = [0; MAX_REQUEST];
        match rustix::net::recv(&self.socket, &mut chunk[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => false,
            Ok((len, _)) => {
                self.input.extend_from_slice(&chunk[..len.min(MAX_REQUEST)]);
                self.input.len() <= MAX_REQUEST
            }
            Err(Errno::AGAIN | Errno::INTR) => true,
            Err(_) => false,
        }
    }

    fn next_line(&mut self) -> Option<Vec<u8>> {
        let end = self.input.iter().position(|byte| *byte == b'\n')?;
        Some(self.input.drain(..=end).collect())
    }

    /// Sends what waits; `false` when the peer is gone.
    fn flush(&mut self) -> bool {
        while !self.output.is_empty() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(&self.socket, &self.output, flags) {
                Ok(sent) => drop(self.output.drain(..sent)),
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        true
    }
}

/// QPs that are being asked for.
#[derive(Debug)]
pub struct QpListing {
    pub(crate) admin: u32,
    /// A page of `res_show`, with where the next one begins; else all of `qp`.
    pub(crate) page: Option<Option<u64>>,
    /// In the order of the questions.
    pub(crate) qps: Vec<(Key, Told)>,
}

/// The request in a line. What it has beyond the fields that are known is an error, also where serde passes over it:
/// beside the tag of a request without fields.
fn parse(line: &[u8]) -> Result<AdminRequest, String> {
    let value: Value = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let request: AdminRequest = serde_json::from_value(value.clone()).map_err(|error| error.to_string())?;
    let known = json!(request);
    let unknown = value.as_object().and_then(|fields| {
        fields
            .iter()
            .find(|(name, value)| known.get(name).is_none() && !value.is_null())
    });
    match unknown {
        Some((name, _)) => Err(format!("unknown field `{name}`")),
        None => Ok(request),
    }
}

impl Control {
    /// Serves a connection of `rnicctl`.
    pub(crate) fn serve_admin(&mut self, id: u32, closed: bool) {
        let Some(admin) = self.admins.get_mut(&id) else {
            return;
        };
        // A peer that only stopped writing still wants its answer.
        let alive = admin.flush() && (admin.busy || admin.fill());
        if !alive || (closed && admin.busy) {
            return self.close_admin(id);
        }
        self.next_admin_request(id);
    }

    fn next_admin_request(&mut self, id: u32) {
        loop {
            let Some(admin) = self.admins.get_mut(&id) else {
                return;
            };
            if admin.busy || !admin.output.is_empty() {
                break;
            }
            let Some(line) = admin.next_line() else { break };
            let response = match parse(&line) {
                Ok(AdminRequest::Res) => ok(&self.res_summary()),
                Ok(AdminRequest::ResShow(query)) => match self.all_answer() {
                    Ok(()) => match self.show_resources(id, &query) {
                        Some(response) => response,
                        None => continue,
                    },
                    Err(refusal) => AdminResponse::Error(refusal.text().to_owned()),
                },
                Ok(AdminRequest::Status) => ok(&self.status()),
                Ok(AdminRequest::Dev) => ok(&self.device_states()),
                Ok(AdminRequest::Gid) => ok(&self.gid_states()),
                Ok(AdminRequest::Neigh) => ok(&self.neighbour_states()),
                Ok(AdminRequest::Qp) => match self.all_answer() {
                    Ok(()) => {
                        let all: Vec<Key> = self.objects.iter().map(|(key, _)| key).collect();
                        self.ask_for_qps(id, None, all);
                        continue;
                    }
                    // The cores know what is to be listed, and this one would not answer.
                    Err(refusal) => AdminResponse::Error(refusal.text().to_owned()),
                },
                Ok(AdminRequest::PortAdd { ports }) => {
                    admin.busy = true;
                    match self.add_ports(id, &ports) {
                        Ok(()) => continue,
                        Err(why) => self.not_begun(id, why),
                    }
                }
                Ok(AdminRequest::PortRemove { name }) => {
                    admin.busy = true;
                    match self.remove_port(Some(id), &name) {
                        Ok(()) => continue,
                        Err(why) => self.not_begun(id, why),
                    }
                }
                Err(error) => AdminResponse::Error(format!(
                    "{error}; requests are status, dev, qp, gid, neigh, res, res_show, port_add and port_remove"
                )),
            };
            self.respond(id, &response);
        }
        let Some(admin) = self.admins.get(&id) else { return };
        let interest = match (admin.busy, admin.output.is_empty()) {
            (true, _) => Interest::Nothing,
            (false, true) => Interest::Read,
            (false, false) => Interest::Write,
        };
        self.poller.change(&admin.socket, Source::Admin(id), interest);
    }

    fn respond(&mut self, id: u32, response: &AdminResponse) {
        let Some(admin) = self.admins.get_mut(&id) else {
            return;
        };
        let text = serde_json::to_vec(response);
        admin
            .output
            .extend(text.unwrap_or_else(|_| br#"{"error":"no JSON"}"#.to_vec()));
        admin.output.push(b'\n');
        if !admin.flush() {
            self.close_admin(id);
        }
    }

    fn close_admin(&mut self, id: u32) {
        if let Some(admin) = self.admins.remove(&id) {
            self.poller.remove(&admin.socket);
        }
    }

    /// All cores have answered.
    pub(crate) fn qps_listed(&mut self, listing: QpListing, answers: Vec<(usize, Option<QpStatus>)>) {
        // Each core answers in the order it was asked.
        let mut by_core: HashMap<usize, VecDeque<Option<QpStatus>>> = HashMap::new();
        for (core, status) in answers {
            by_core.entry(core).or_default().push_back(status);
        }
        let mut states = Vec::new();
        let mut objects = Vec::new();
        for (key, told) in listing.qps {
            let status = match told {
                Told::Core(core) => by_core.get_mut(&core).and_then(VecDeque::pop_front).flatten(),
                Told::Here(status) => Some(status),
            };
            if listing.page.is_some() {
                objects.extend(status.and_then(|status| self.resource(key, Some(&status))));
                continue;
            }
            // Destroyed meanwhile: not listed.
            if let (Some(object), Some(status)) = (self.objects.peek(key), status) {
                states.extend(self.qp_state(object, &status));
            }
        }
        let response = match listing.page {
            Some(next) => ok(&ResPage { objects, next }),
            None => ok(&states),
        };
        self.answer_admin(listing.admin, &response);
    }

    /// Answers a request that took a while, and serves the next one.
    pub(crate) fn answer_admin(&mut self, id: u32, response: &AdminResponse) {
        if let Some(admin) = self.admins.get_mut(&id) {
            admin.busy = false;
        }
        self.respond(id, response);
        self.next_admin_request(id);
    }

    /// A request that was refused at once.
    fn not_begun(&mut self, id: u32, why: String) -> AdminResponse {
        if let Some(admin) = self.admins.get_mut(&id) {
            admin.busy = false;
        }
        AdminResponse::Error(why)
    }
}

/// No client's connection: requests of `rnicctl` are nobody's.
pub(crate) const NOBODY: u32 = u32::MAX;

pub(crate) fn ok(value: &impl Serialize) -> AdminResponse {
    match serde_json::to_value(value) {
        Ok(value) => AdminResponse::Ok(value),
        Err(error) => AdminResponse::Error(error.to_string()),
    }
}

/// The line that asks for something.
pub fn request_line(request: AdminRequest) -> String {
    format!("{}\n", json!(request))
}
