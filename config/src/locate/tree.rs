//! The tree of places, built without recursion from the parser's events.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScanError, Span};

use super::{Place, quoted};
use crate::diagnostic::{KeyPath, Step};

/// Deepest nesting of lists and maps; the schema needs seven.
const MAX_DEPTH: usize = 32;
/// Most nodes, counting those that aliases repeat.
const MAX_NODES: usize = 100_000;

/// The places of a document. Without a document, one empty node at the start.
#[derive(Debug)]
pub(super) struct Tree {
    root: Node,
}

#[derive(Debug)]
struct Node {
    place: Place,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// A scalar, or an alias: what it stands for is at its anchor, but it is written here.
    Leaf,
    List(Vec<Node>),
    Map(HashMap<String, Entry>),
}

#[derive(Debug)]
struct Entry {
    key_place: Place,
    value: Node,
}

/// Why a text is not a configuration.
pub(super) struct Refused {
    pub(super) message: String,
    pub(super) help: String,
    pub(super) place: Place,
    pub(super) key: KeyPath,
}

impl Default for Tree {
    fn default() -> Self {
        Self {
            root: Node {
                place: Place::START,
                content: Content::Leaf,
            },
        }
    }
}

impl Tree {
    pub(super) fn of(text: &str) -> Result<Self, Box<Refused>> {
        let mut builder = Builder::default();
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|error| syntax(text, &error))?;
            builder.take(event, span)?;
        }
        Ok(builder.root.map_or_else(Self::default, |root| Self { root }))
    }

    /// Where the value at `path` is written, or the deepest part of the path that is.
    pub(super) fn value(&self, path: &KeyPath) -> Place {
        let mut node = &self.root;
        for step in path.steps() {
            let Some((key_place, next)) = node.step(step) else {
                break;
            };
            match key_place {
                // A value left empty has no extent: its key stands for it.
                Some(place) if next.place.length == 0 && matches!(next.content, Content::Leaf) => {
                    return place;
                }
                _ => node = next,
            }
        }
        node.place
    }

    /// Where the last key of `path` is written, or as [`Tree::value`].
    pub(super) fn key(&self, path: &KeyPath) -> Place {
        let mut node = &self.root;
        let mut key = None;
        for step in path.steps() {
            let Some((key_place, next)) = node.step(step) else {
                return self.value(path);
            };
            (key, node) = (key_place, next);
        }
        key.unwrap_or(node.place)
    }
}

impl Node {
    fn step(&self, step: &Step) -> Option<(Option<Place>, &Node)> {
        match (&self.content, step) {
            (Content::List(items), Step::Index(index)) => items.get(*index).map(|node| (None, node)),
            (Content::Map(entries), Step::Key(key)) => entries
                .get(key)
                .map(|entry| (Some(entry.key_place), &entry.value)),
            _ => None,
        }
    }
}

/// A list or map that is still open.
struct Open {
    node: Node,
    /// The key whose value comes next.
    key: Option<(String, Place)>,
    anchor: usize,
    /// [`Builder::nodes`] when it was opened.
    nodes_before: usize,
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    root: Option<Node>,
    documents: usize,
    /// Nodes so far, aliases counted as what they repeat.
    nodes: usize,
    /// Number of nodes in each finished anchored node.
    anchors: HashMap<usize, usize>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Box<Refused>> {
        let place = place(span);
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(self.refuse(
                        place,
                        "a second document begins here",
                        "remove `---` and what follows",
                    ));
                }
            }
            Event::Scalar(text, _, anchor, tag) => {
                self.no_tag(tag.is_some(), place)?;
                self.count(1, place)?;
                self.anchors.insert(anchor, 1);
                if self.awaits_key() {
                    return self.take_key(text.into_owned(), place);
                }
                self.finish(Node {
                    place,
                    content: Content::Leaf,
                });
            }
            Event::Alias(anchor) => {
                let Some(nodes) = self.anchors.get(&anchor).copied() else {
                    return Err(self.refuse(
                        place,
                        "this alias is part of its own anchor",
                        "write the value out",
                    ));
                };
                if self.awaits_key() {
                    return Err(self.refuse(place, "an alias cannot be a key", "write the key out"));
                }
                self.count(nodes, place)?;
                self.finish(Node {
                    place,
                    content: Content::Leaf,
                });
            }
            Event::SequenceStart(anchor, tag) => {
                self.no_tag(tag.is_some(), place)?;
                self.begin(Content::List(Vec::new()), anchor, place)?;
            }
            Event::MappingStart(anchor, tag) => {
                self.no_tag(tag.is_some(), place)?;
                self.begin(Content::Map(HashMap::new()), anchor, place)?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(Open {
                    node,
                    anchor,
                    nodes_before,
                    ..
                }) = self.open.pop()
                {
                    self.anchors.insert(anchor, self.nodes - nodes_before);
                    self.finish(node);
                }
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        Ok(())
    }

    fn begin(&mut self, content: Content, anchor: usize, place: Place) -> Result<(), Box<Refused>> {
        if self.awaits_key() {
            let help = "a key is one word; did you forget quotes around a value with `{` or `[`?";
            return Err(self.refuse(place, "a list or map cannot be a key", help));
        }
        if self.open.len() >= MAX_DEPTH {
            let message = format!("lists and maps are nested more than {MAX_DEPTH} deep");
            return Err(self.refuse(place, message, "remove the surplus brackets or indentation"));
        }
        let nodes_before = self.nodes;
        self.count(1, place)?;
        // Collections may begin with a comment or a whole block: what matters is where, not how long.
        let node = Node {
            place: Place { length: 1, ..place },
            content,
        };
        self.open.push(Open {
            node,
            key: None,
            anchor,
            nodes_before,
        });
        Ok(())
    }

    fn awaits_key(&self) -> bool {
        matches!(
            self.open.last(),
            Some(Open {
                node: Node {
                    content: Content::Map(_),
                    ..
                },
                key: None,
                ..
            })
        )
    }

    fn take_key(&mut self, key: String, place: Place) -> Result<(), Box<Refused>> {
        let Some(Open {
            node: Node {
                content: Content::Map(entries),
                ..
            },
            key: next,
            ..
        }) = self.open.last_mut()
        else {
            return Ok(());
        };
        if let Some(first) = entries.get(&key) {
            let first = first.key_place.line;
            let message = format!("the key {} is given twice", quoted(&key));
            let help = format!("remove one of them; the first is on line {first}");
            return Err(Box::new(Refused {
                message,
                help,
                place,
                key: self.path().key(&key),
            }));
        }
        *next = Some((key, place));
        Ok(())
    }

    /// A node is complete: it belongs to the innermost open list or map.
    fn finish(&mut self, node: Node) {
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open {
                node:
                    Node {
                        content: Content::List(items),
                        ..
                    },
                ..
            }) => items.push(node),
            Some(Open {
                node:
                    Node {
                        content: Content::Map(entries),
                        ..
                    },
                key,
                ..
            }) => {
                if let Some((key, key_place)) = key.take() {
                    entries.insert(
                        key,
                        Entry {
                            key_place,
                            value: node,
                        },
                    );
                }
            }
            Some(Open {
                node:
                    Node {
                        content: Content::Leaf,
                        ..
                    },
                ..
            }) => {}
        }
    }

    fn count(&mut self, nodes: usize, place: Place) -> Result<(), Box<Refused>> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > MAX_NODES {
            let message =
                format!("the file has more than {MAX_NODES} values, aliases counted as what they repeat");
            return Err(self.refuse(place, message, "write out the few values that are needed"));
        }
        Ok(())
    }

    fn no_tag(&self, tagged: bool, place: Place) -> Result<(), Box<Refused>> {
        if tagged {
            return Err(self.refuse(
                place,
                "YAML tags have no meaning here",
                "remove the word that begins with `!`",
            ));
        }
        Ok(())
    }

    fn refuse(&self, place: Place, message: impl Into<String>, help: &str) -> Box<Refused> {
        Box::new(Refused {
            message: message.into(),
            help: help.to_owned(),
            place,
            key: self.path(),
        })
    }

    /// The path of what is being read.
    fn path(&self) -> KeyPath {
        self.open.iter().fold(KeyPath::default(), |path, open| {
            match (&open.node.content, &open.key) {
                (Content::List(items), _) => path.index(items.len()),
                (_, Some((key, _))) => path.key(key),
                _ => path,
            }
        })
    }
}

fn place(span: Span) -> Place {
    let length = if span.start.line() == span.end.line() {
        span.end.col().saturating_sub(span.start.col())
    } else {
        1
    };
    Place {
        line: span.start.line(),
        column: span.start.col() + 1,
        length,
    }
}

fn syntax(text: &str, error: &ScanError) -> Box<Refused> {
    let mark = error.marker();
    let marked = Place {
        line: mark.line(),
        column: mark.col() + 1,
        length: 1,
    };
    // The parser marks where the text before a tab began, which may be lines earlier.
    let tab = error
        .info()
        .contains("tab")
        .then(|| tab_indent(text, mark.line()))
        .flatten();
    Box::new(Refused {
        message: format!("this is not YAML: {}", error.info()),
        help: SYNTAX_HELP.to_owned(),
        place: tab.unwrap_or(marked),
        key: KeyPath::default(),
    })
}

const SYNTAX_HELP: &str =
    "indent with spaces, never tabs; quote text that contains `: `, ` #` or begins with one of `{[&*!|>%@`";

/// The first tab in the indentation of a line, from line `from` on.
fn tab_indent(text: &str, from: usize) -> Option<Place> {
    text.lines()
        .enumerate()
        .skip(from.saturating_sub(1))
        .find_map(|(index, line)| {
            let indent = line.bytes().take_while(|b| *b == b' ').count();
            line[indent..].starts_with('\t').then_some(Place {
                line: index + 1,
                column: indent + 1,
                length: 1,
            })
        })
}
