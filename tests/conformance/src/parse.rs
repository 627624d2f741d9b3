//! Reading scripts: one statement a line, `#` begins a comment.

use crate::script::{
    Amount, Attribute, Count, Done, Fault, FaultKind, FrameName, Heard, Line, Operation, Pick, Post, Queue,
    Rate, Recv, Script, Service, Side, Srq,
};
use rnic_transport::{EventKind, WcStatus};
use rnic_wire::{Mtu, Operation as WireOperation};
use winnow::ascii::{dec_uint, space0, space1};
use winnow::combinator::{alt, cut_err, dispatch, eof, fail, opt, preceded, repeat, terminated};
use winnow::error::{StrContext, StrContextValue};
use winnow::prelude::*;
use winnow::token::take_while;

/// A script that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: expected {expected}\n  {text}")]
pub struct ScriptError {
    /// The script's name.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
    /// What may stand there.
    pub expected: String,
    /// The line.
    pub text: String,
}

enum Statement {
    Service(Service),
    Mtu(Mtu),
    Congestion(bool),
    Seed(u64),
    Set(Side, Attribute, u32),
    Recv(Recv),
    Post(Post),
    Fault(Fault),
    Rate(Rate),
    Line(Line),
    Count(Count),
    Done(Done),
    Heard(Side, Heard),
    Event(Side, EventKind),
}

impl Script {
    /// Reads a script; `name` is for messages.
    ///
    /// # Errors
    /// Where, and what could have stood there.
    pub fn parse(name: &str, text: &str) -> Result<Script, ScriptError> {
        let mut script = Script {
            name: name.into(),
            service: Service::Rc,
            mtu: Mtu::M256,
            congestion: false,
            seed: 0,
            attributes: Vec::new(),
            recvs: Vec::new(),
            posts: Vec::new(),
            faults: Vec::new(),
            rates: Vec::new(),
            trace: Vec::new(),
            counts: Vec::new(),
            done: Vec::new(),
            heard: Vec::new(),
            events: Vec::new(),
        };
        for (at, whole) in text.lines().enumerate() {
            let line = whole.split('#').next().unwrap_or("").trim_end();
            if line.trim().is_empty() {
                continue;
            }
            let read = preceded(space0, terminated(statement, end)).parse(line);
            let read = read.map_err(|error| ScriptError {
                file: name.into(),
                line: at + 1,
                column: error.offset() + 1,
                expected: expected(error.inner()),
                text: whole.into(),
            })?;
            script.take(read, at + 1);
        }
        Ok(script)
    }

    fn take(&mut self, statement: Statement, line: usize) {
        match statement {
            Statement::Service(service) => self.service = service,
            Statement::Mtu(mtu) => self.mtu = mtu,
            Statement::Congestion(on) => self.congestion = on,
            Statement::Seed(seed) => self.seed = seed,
            Statement::Set(side, attribute, value) => self.attributes.push((side, attribute, value)),
            Statement::Recv(recv) => self.recvs.push(recv),
            Statement::Post(post) => self.posts.push(post),
            Statement::Fault(fault) => self.faults.push(fault),
            Statement::Rate(rate) => self.rates.push(rate),
            Statement::Line(expected) => self.trace.push(Line { line, ..expected }),
            Statement::Count(count) => self.counts.push(Count { line, ..count }),
            Statement::Done(done) => self.done.push(done),
            Statement::Heard(side, heard) => self.heard.push((side, heard)),
            Statement::Event(side, kind) => self.events.push((side, kind)),
        }
    }
}

/// What an error says was expected.
fn expected(error: &winnow::error::ContextError) -> String {
    let described = error.context().find_map(|context| match context {
        StrContext::Expected(value) => Some(value.to_string()),
        StrContext::Label(_) | _ => None,
    });
    described.unwrap_or_else(|| "a statement".into())
}

fn describe(what: &'static str) -> StrContext {
    StrContext::Expected(StrContextValue::Description(what))
}

/// A word: letters, digits, `_`.
fn word<'s>(input: &mut &'s str) -> ModalResult<&'s str> {
    take_while(1.., |c: char| c.is_ascii_alphanumeric() || c == '_').parse_next(input)
}

fn end(input: &mut &str) -> ModalResult<()> {
    (space0, eof)
        .void()
        .context(describe("the end of the line"))
        .parse_next(input)
}

/// The next argument of a statement, after space. What it must be is an error when it is not.
fn next<'s, O>(
    parser: impl Parser<&'s str, O, winnow::error::ErrMode<winnow::error::ContextError>>,
    what: &'static str,
) -> impl Parser<&'s str, O, winnow::error::ErrMode<winnow::error::ContextError>> {
    preceded(space1, cut_err(parser.context(describe(what)))).context(describe(what))
}

/// One of some words.
fn one_of<'s, T: Copy>(
    choices: &'static [(&'static str, T)],
) -> impl Parser<&'s str, T, winnow::error::ErrMode<winnow::error::ContextError>> {
    word.verify_map(|word: &str| {
        choices
            .iter()
            .find(|(name, _)| *name == word)
            .map(|(_, value)| *value)
    })
}

/// An optional word, and what follows it.
fn option<'s, O>(
    name: &'static str,
    value: impl Parser<&'s str, O, winnow::error::ErrMode<winnow::error::ContextError>>,
) -> impl Parser<&'s str, Option<O>, winnow::error::ErrMode<winnow::error::ContextError>> {
    opt(preceded((space1, name), value))
}

const STATEMENTS: &[&str] = &[
    "service",
    "mtu",
    "congestion",
    "seed",
    "set",
    "recv",
    "post",
    "drop",
    "duplicate",
    "corrupt",
    "reorder",
    "mark",
    "delay",
    "rate",
    "count",
    "done",
    "heard",
    "event",
];
const SIDES: &[(&str, Side)] = &[("a", Side::A), ("b", Side::B)];
const SERVICES: &[(&str, Service)] = &[
    ("rc", Service::Rc),
    ("xrc", Service::Xrc),
    ("uc", Service::Uc),
    ("ud", Service::Ud),
];
const SRQS: &[(&str, Srq)] = &[
    ("first", Srq::First),
    ("second", Srq::Second),
    ("foreign", Srq::Foreign),
    ("unknown", Srq::Unknown),
];
const CONGESTION: &[(&str, bool)] = &[("off", false), ("dcqcn", true)];
const QUEUES: &[(&str, Queue)] = &[("send", Queue::Send), ("recv", Queue::Recv)];
const ATTRIBUTES: &[(&str, Attribute)] = &[
    ("psn", Attribute::Psn),
    ("timeout", Attribute::Timeout),
    ("retry_cnt", Attribute::RetryCnt),
    ("rnr_retry", Attribute::RnrRetry),
    ("min_rnr_timer", Attribute::MinRnrTimer),
    ("max_rd_atomic", Attribute::MaxRdAtomic),
    ("max_dest_rd_atomic", Attribute::MaxDestRdAtomic),
];
const OPERATIONS: &[(&str, Operation)] = &[
    ("send", Operation::Send),
    ("send_imm", Operation::SendImm),
    ("write", Operation::Write),
    ("write_imm", Operation::WriteImm),
    ("read", Operation::Read),
    ("fetch_add", Operation::FetchAdd),
    ("cmp_swap", Operation::CmpSwap),
    ("atomic_write", Operation::AtomicWrite),
    ("flush", Operation::Flush),
];
const STATUSES: &[(&str, WcStatus)] = &[
    ("success", WcStatus::Success),
    ("loc_len_err", WcStatus::LocLenErr),
    ("loc_qp_op_err", WcStatus::LocQpOpErr),
    ("loc_prot_err", WcStatus::LocProtErr),
    ("wr_flush_err", WcStatus::WrFlushErr),
    ("bad_resp_err", WcStatus::BadRespErr),
    ("rem_inv_req_err", WcStatus::RemInvReqErr),
    ("rem_access_err", WcStatus::RemAccessErr),
    ("rem_op_err", WcStatus::RemOpErr),
    ("retry_exc_err", WcStatus::RetryExcErr),
    ("rnr_retry_exc_err", WcStatus::RnrRetryExcErr),
];
const EVENTS: &[(&str, EventKind)] = &[
    ("qp_fatal", EventKind::QpFatal),
    ("qp_req_err", EventKind::QpReqErr),
    ("qp_access_err", EventKind::QpAccessErr),
    ("sq_drained", EventKind::SqDrained),
    ("last_wqe_reached", EventKind::LastWqeReached),
];
const UNITS: &[(&str, u64)] = &[("ns", 1), ("us", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000)];

/// What NAKs say beside their name.
const NAKS: &[&str] = &["sequence", "invalid", "access", "operational"];

fn side(input: &mut &str) -> ModalResult<Side> {
    next(one_of(SIDES), "a or b").parse_next(input)
}

fn number(input: &mut &str) -> ModalResult<u32> {
    next(dec_uint, "a number").parse_next(input)
}

/// "4ms"
fn time(input: &mut &str) -> ModalResult<u64> {
    let unit = take_while(1..=2, 'a'..='z').verify_map(|unit: &str| {
        UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .map(|(_, nanos)| *nanos)
    });
    next((dec_uint::<_, u32, _>, unit), "a time, such as 40us or 4ms")
        .map(|(count, nanos)| u64::from(count) * nanos)
        .parse_next(input)
}

fn named(input: &mut &str) -> ModalResult<String> {
    let known = |word: &str| {
        matches!(word, "ACK" | "NAK" | "RNR_NAK" | "CNP")
            || WireOperation::ALL
                .iter()
                .any(|operation| operation.name() == word)
    };
    word.verify(known).map(String::from).parse_next(input)
}

/// A name, and a relative PSN or "any".
fn pick(input: &mut &str) -> ModalResult<Pick> {
    let what = "the name of a frame, such as SEND_ONLY, ACK, NAK, RNR_NAK, or any";
    let side = side.parse_next(input)?;
    let name = next(
        alt(("any".value(FrameName::Any), named.map(FrameName::Named))),
        what,
    )
    .parse_next(input)?;
    let psn = next(
        alt(("any".value(None), dec_uint.map(Some))),
        "a relative PSN, or any",
    )
    .parse_next(input)?;
    Ok(Pick { side, name, psn })
}

fn amount(input: &mut &str) -> ModalResult<Amount> {
    let times = terminated(preceded(space1, dec_uint), (space1, "times")).map(Amount::Times);
    let always = (space1, "always").value(Amount::Always);
    opt(alt((times, always)))
        .map(|amount| amount.unwrap_or(Amount::Times(1)))
        .parse_next(input)
}

fn fault<'s>(
    kind: FaultKind,
) -> impl Parser<&'s str, Statement, winnow::error::ErrMode<winnow::error::ContextError>> {
    (pick, amount).map(move |(pick, amount)| Statement::Fault(Fault { kind, pick, amount }))
}

fn delay(input: &mut &str) -> ModalResult<Statement> {
    let pick = pick.parse_next(input)?;
    let amount = amount.parse_next(input)?;
    next("by", "by").parse_next(input)?;
    let kind = FaultKind::Delay(time.parse_next(input)?);
    Ok(Statement::Fault(Fault { kind, pick, amount }))
}

fn rate(input: &mut &str) -> ModalResult<Statement> {
    const KINDS: &[(&str, FaultKind)] = &[
        ("drop", FaultKind::Drop),
        ("duplicate", FaultKind::Duplicate),
        ("corrupt", FaultKind::Corrupt),
        ("reorder", FaultKind::Reorder),
        ("mark", FaultKind::Mark),
        ("delay", FaultKind::Delay(0)),
    ];
    let side = side.parse_next(input)?;
    let what = "drop, duplicate, corrupt, reorder, mark or delay";
    let kind = next(one_of(KINDS), what).parse_next(input)?;
    if kind == FaultKind::Delay(0) {
        let kind = FaultKind::Delay(time.parse_next(input)?);
        return Ok(Statement::Rate(Rate {
            side,
            kind,
            per_mille: 1_000,
        }));
    }
    let percent = terminated(dec_uint::<_, u32, _>, '%').verify(|percent| *percent <= 100);
    let per_mille = next(percent, "a share from 0% to 100%").parse_next(input)? * 10;
    Ok(Statement::Rate(Rate {
        side,
        kind,
        per_mille,
    }))
}

/// Which XRC SRQ.
fn srq(input: &mut &str) -> ModalResult<Srq> {
    let which = next(one_of(SRQS), "first, second, foreign or unknown");
    Ok(option("srq", which).parse_next(input)?.unwrap_or_default())
}

fn recv(input: &mut &str) -> ModalResult<Statement> {
    let recv = Recv {
        side: side.parse_next(input)?,
        count: number.parse_next(input)? as usize,
        size: option("size", number).parse_next(input)?.unwrap_or(1 << 16) as usize,
        at: option("at", time).parse_next(input)?.unwrap_or(0),
        srq: srq(input)?,
    };
    Ok(Statement::Recv(recv))
}

fn post(input: &mut &str) -> ModalResult<Statement> {
    let side = side.parse_next(input)?;
    let what = "send, send_imm, write, write_imm, read, fetch_add, cmp_swap, atomic_write or flush";
    let operation = next(one_of(OPERATIONS), what).parse_next(input)?;
    let len = match operation {
        _ if operation.is_atomic() => 8,
        _ => number.parse_next(input)? as usize,
    };
    let post = Post {
        side,
        operation,
        len,
        fence: opt((space1, "fence")).parse_next(input)?.is_some(),
        bad_key: opt((space1, "bad_key")).parse_next(input)?.is_some(),
        bad_qkey: opt((space1, "bad_qkey")).parse_next(input)?.is_some(),
        at: option("at", time).parse_next(input)?.unwrap_or(0),
        srq: srq(input)?,
    };
    Ok(Statement::Post(post))
}

fn line(input: &mut &str) -> ModalResult<Statement> {
    let side = side.parse_next(input)?;
    let mut name = next(
        named,
        "the name of a frame, such as SEND_ONLY, ACK, NAK or RNR_NAK",
    )
    .parse_next(input)?;
    if name == "NAK" {
        let why = word.verify(|why: &str| NAKS.contains(&why));
        let why: &str = next(why, "sequence, invalid, access or operational").parse_next(input)?;
        name = format!("NAK {why}");
    }
    let psn = number.parse_next(input)?;
    let after = option("after", time).parse_next(input)?.unwrap_or(0);
    let line = 0;
    Ok(Statement::Line(Line {
        side,
        name,
        psn,
        after,
        line,
    }))
}

fn done(input: &mut &str) -> ModalResult<Statement> {
    let done = Done {
        side: side.parse_next(input)?,
        queue: next(one_of(QUEUES), "send or recv").parse_next(input)?,
        number: number.parse_next(input)? as usize,
        status: next(
            one_of(STATUSES),
            "a status as ibv_wc_status has it, such as rem_access_err",
        )
        .parse_next(input)?,
    };
    Ok(Statement::Done(done))
}

fn heard(input: &mut &str) -> ModalResult<Statement> {
    let side = side.parse_next(input)?;
    let numbers = repeat(
        1..,
        preceded(space1, dec_uint::<_, u32, _>.map(|number| number as usize)),
    );
    let which = alt((
        preceded(space1, "some").value(Heard::Some),
        preceded(space1, "none").value(Heard::Exactly(Vec::new())),
        numbers.map(Heard::Exactly),
    ));
    let which =
        cut_err(which.context(describe("some, none, or numbers of work requests"))).parse_next(input)?;
    Ok(Statement::Heard(side, which))
}

fn statement(input: &mut &str) -> ModalResult<Statement> {
    let mtu = || {
        next(
            dec_uint::<_, u32, _>.verify_map(|bytes| Mtu::from_bytes(bytes as usize)),
            "a path MTU: 256, 512, 1024, 2048 or 4096",
        )
    };
    let event = "qp_fatal, qp_req_err, qp_access_err, sq_drained or last_wqe_reached";
    dispatch! {alt((word.verify(|word: &str| STATEMENTS.contains(&word)), ">"));
        "service" => next(one_of(SERVICES), "rc, xrc, uc or ud").map(Statement::Service),
        "mtu" => mtu().map(Statement::Mtu),
        "congestion" => next(one_of(CONGESTION), "off or dcqcn").map(Statement::Congestion),
        "seed" => number.map(|seed| Statement::Seed(seed.into())),
        "set" => (side, next(one_of(ATTRIBUTES), "an attribute as ibv_qp_attr has it, or psn"), number)
            .map(|(side, attribute, value)| Statement::Set(side, attribute, value)),
        "recv" => recv,
        "post" => post,
        "drop" => fault(FaultKind::Drop),
        "duplicate" => fault(FaultKind::Duplicate),
        "corrupt" => fault(FaultKind::Corrupt),
        "reorder" => fault(FaultKind::Reorder),
        "mark" => fault(FaultKind::Mark),
        "delay" => delay,
        "rate" => rate,
        ">" => line,
        "count" => (pick, number).map(|(pick, count)| Statement::Count(Count { pick, count: count as usize, line: 0 })),
        "done" => done,
        "heard" => heard,
        "event" => (side, next(one_of(EVENTS), event)).map(|(side, kind)| Statement::Event(side, kind)),
        _ => fail,
    }
    .context(describe(
        "service, mtu, congestion, seed, set, recv, post, drop, duplicate, corrupt, reorder, mark, delay, rate, >, count, done, heard or event",
    ))
    .parse_next(input)
}
