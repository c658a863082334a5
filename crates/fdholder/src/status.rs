//! How a holder is, as text: a line for each thing, `NAME=VALUE`. Who reads it passes over
//! names that it does not know, so that later holders can say more.

use crate::error::Malformed;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// How a holder is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// The version of the program.
    pub version: String,
    /// Its process, as that sees itself.
    pub pid: u32,
    /// The user it runs as.
    pub uid: u32,
    /// When this process began to serve, in seconds since 1970.
    pub started: u64,
    /// Descriptors held.
    pub held: u32,
    /// Descriptors that can be.
    pub capacity: u32,
    /// Clients that are connected.
    pub connections: u32,
    /// Clients that can be at once.
    pub connections_max: u32,
    /// Clients that only wait until something is held, besides.
    pub waiting: u32,
    /// The process that has everything, too.
    pub standby: Standby,
    /// systemd keeps a copy of everything.
    pub fdstore: bool,
    /// What has happened since it began to serve, how often.
    pub counts: BTreeMap<String, u64>,
    /// What services say of themselves, by `sd_notify(3)`.
    pub services: Vec<Service>,
    /// Held listeners and their queues, those first at which clients wait for longest.
    pub listeners: Vec<Listening>,
}

/// A held listener: whether a process accepts from it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listening {
    /// Its identifier, as it is shown.
    pub id: String,
    /// Clients that wait to be accepted.
    pub queue: u32,
    /// Clients that may.
    pub queue_max: u32,
    /// For how many seconds some have waited, and no process was seen to accept any.
    pub waiting: u64,
}

/// The standby of a holder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Standby {
    /// There is to be none.
    #[default]
    None,
    /// There is to be one, and it does not have everything yet.
    Starting,
    /// This process has everything.
    Ready(u32),
}

/// What a service says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// Which.
    pub name: String,
    /// It has said READY=1.
    pub ready: bool,
    /// The process that spoke last; 0 when that cannot be seen.
    pub pid: u32,
    /// What it has said behind STATUS=.
    pub status: String,
}

/// Characters that would end a line, or a field of it, and others that a terminal would act
/// upon.
fn on_one_line(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, uid, started, held, capacity, connections, connections_max, .. } = self;
        writeln!(f, "version={}", on_one_line(&self.version))?;
        writeln!(f, "pid={pid}\nuid={uid}\nstarted={started}")?;
        writeln!(f, "held={held}\ncapacity={capacity}")?;
        writeln!(f, "connections={connections}\nconnections_max={connections_max}")?;
        writeln!(f, "waiting={}", self.waiting)?;
        match self.standby {
            Standby::None => writeln!(f, "standby=none")?,
            Standby::Starting => writeln!(f, "standby=starting")?,
            Standby::Ready(pid) => writeln!(f, "standby={pid}")?,
        }
        writeln!(f, "fdstore={}", u8::from(self.fdstore))?;
        for (name, count) in &self.counts {
            writeln!(f, "count.{}={count}", on_one_line(name))?;
        }
        for Service { name, ready, pid, status } in &self.services {
            let (name, status) = (on_one_line(name), on_one_line(status));
            writeln!(f, "service={}\t{pid}\t{name}\t{status}", u8::from(*ready))?;
        }
        for Listening { id, queue, queue_max, waiting } in &self.listeners {
            writeln!(f, "listener={queue}\t{queue_max}\t{waiting}\t{}", on_one_line(id))?;
        }
        Ok(())
    }
}

impl FromStr for Status {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let mut status = Self::default();
        for line in text.lines() {
            let (name, value) = line.split_once('=').ok_or(Malformed("a status with no value"))?;
            match name {
                "version" => value.clone_into(&mut status.version),
                "pid" => status.pid = number(value)?,
                "uid" => status.uid = number(value)?,
                "started" => status.started = number(value)?,
                "held" => status.held = number(value)?,
                "capacity" => status.capacity = number(value)?,
                "connections" => status.connections = number(value)?,
                "connections_max" => status.connections_max = number(value)?,
                "waiting" => status.waiting = number(value)?,
                "standby" => {
                    status.standby = match value {
                        "none" => Standby::None,
                        "starting" => Standby::Starting,
                        pid => Standby::Ready(number(pid)?),
                    }
                }
                "fdstore" => status.fdstore = value != "0",
                "listener" => status.listeners.push(listener(value)?),
                "service" => status.services.push(service(value)?),
                _ => {
                    if let Some(count) = name.strip_prefix("count.") {
                        status.counts.insert(count.to_owned(), number(value)?);
                    }
                }
            }
        }
        Ok(status)
    }
}

fn number<T: FromStr>(text: &str) -> Result<T, Malformed> {
    text.parse().map_err(|_| Malformed("a status with a number that is none"))
}

fn service(text: &str) -> Result<Service, Malformed> {
    let fields: Vec<_> = text.splitn(4, '\t').collect();
    let [ready, pid, name, status] = fields[..] else {
        return Err(Malformed("a status with half a service"));
    };
    Ok(Service {
        name: name.to_owned(),
        ready: ready != "0",
        pid: number(pid)?,
        status: status.to_owned(),
    })
}

fn listener(text: &str) -> Result<Listening, Malformed> {
    let fields: Vec<_> = text.splitn(4, '\t').collect();
    let [queue, queue_max, waiting, id] = fields[..] else {
        return Err(Malformed("a status with half a listener"));
    };
    Ok(Listening {
        id: id.to_owned(),
        queue: number(queue)?,
        queue_max: number(queue_max)?,
        waiting: number(waiting)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_status() -> impl Strategy<Value = Status> {
        let numbers = any::<[u32; 7]>();
        let standby = prop_oneof![
            Just(Standby::None),
            Just(Standby::Starting),
            any::<u32>().prop_map(Standby::Ready)
        ];
        let service = ("[a-z/]{1,8}", any::<bool>(), any::<u32>(), "[ -~]{0,20}")
            .prop_map(|(name, ready, pid, status)| Service { name, ready, pid, status });
        let counts = proptest::collection::btree_map("[a-z.]{1,8}", any::<u64>(), 0..5);
        let services = proptest::collection::vec(service, 0..3);
        let listener = ("[a-z/]{1,8}", any::<(u32, u32, u64)>()).prop_map(
            |(id, (queue, queue_max, waiting))| Listening { id, queue, queue_max, waiting },
        );
        let listeners = proptest::collection::vec(listener, 0..3);
        (numbers, standby, any::<(u64, bool)>(), counts, services, listeners).prop_map(
            |(numbers, standby, (started, fdstore), counts, services, listeners)| {
                let [pid, uid, held, capacity, connections, connections_max, waiting] = numbers;
                let version = "1.2.3".to_owned();
                Status {
                    version,
                    pid,
                    uid,
                    started,
                    held,
                    capacity,
                    connections,
                    connections_max,
                    waiting,
                    standby,
                    fdstore,
                    counts,
                    services,
                    listeners,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn it_comes_back_as_it_was(status in any_status()) {
            prop_assert_eq!(status.to_string().parse(), Ok(status));
        }

        #[test]
        fn noise_never_panics(text: String) {
            let _ = text.parse::<Status>();
        }
    }

    #[test]
    fn what_is_unknown_is_passed_over_and_nothing_ends_a_line() {
        assert_eq!("mood=good\npid=5\n".parse(), Ok(Status { pid: 5, ..Status::default() }));
        assert!("pid=five\n".parse::<Status>().is_err());
        assert!("service=1\t5\tweb".parse::<Status>().is_err());
        assert!("listener=1\t5\tweb".parse::<Status>().is_err());
        let mut status = Status::default();
        let said = "a\nheld=7\t\u{1b}[2J".to_owned();
        let service = Service { name: "web".into(), status: said, ..Service::default() };
        status.services.push(service);
        let back: Status = status.to_string().parse().unwrap();
        assert_eq!((back.held, back.services[0].status.as_str()), (0, "a held=7  [2J"));
    }
}
