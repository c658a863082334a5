//! What of the descriptors that this process has inherited the next program has, too: what it is
//! told to keep, and what arguments or the environment name.

use super::mentions::{in_arguments, in_paths, in_variable, path_of, renumbered, Mention};
use super::{inherited, is_for_others, EnvStyle, FIRST};
use crate::failure::{exit, Failure};
use fdholder::environ::Variable;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Found before this process opens anything.
#[derive(Debug, Default)]
pub struct Kept {
    /// Everything is.
    all: bool,
    /// Numbers that nothing else gets, and why.
    taken: BTreeMap<u32, String>,
    /// Those that arguments seem to name: where one is to be a descriptor that is passed on, that is
    /// meant.
    perhaps: BTreeSet<u32>,
    /// Variables that name descriptors, which may get other numbers.
    named: Vec<(String, OsString, Vec<Mention>)>,
}

/// What stays as it is, and what is to be said of what does not.
#[derive(Debug)]
pub struct Settled {
    /// Numbers that stay open; `None` for all.
    pub numbers: Option<Vec<u32>>,
    /// Variables that name what has moved.
    pub variables: Vec<Variable>,
}

impl Kept {
    /// Looks what is open and named, other than by what PROG is told in its style. `given` are those
    /// that are passed on as they are.
    ///
    /// # Errors
    ///
    /// When one that is to be kept is not open.
    pub fn find(
        asked: &[u32],
        all: bool,
        arguments: &[OsString],
        given: std::ops::Range<u32>,
        style: EnvStyle,
    ) -> Result<Self, Failure> {
        let mut kept = Self { all, ..Self::default() };
        for &number in asked {
            inherited::left(number)
                .map_err(|errno| Failure::system(format!("keep descriptor {number}"), errno))?;
            kept.taken.insert(number, "--keep keeps it".to_owned());
        }
        let is_open = |number: u32| {
            number >= FIRST && !given.contains(&number) && inherited::left(number).is_ok()
        };
        let open = |mentions: Vec<Mention>| mentions.into_iter().filter(|it| is_open(it.number));
        let pid = std::process::id();
        for argument in arguments {
            let bytes = argument.as_bytes();
            for mention in open(in_paths(bytes, pid)) {
                let why = format!("an argument names {}", path_of(bytes, &mention));
                kept.taken.entry(mention.number).or_insert(why);
            }
        }
        kept.perhaps.extend(in_arguments(arguments).into_iter().filter(|number| is_open(*number)));
        for (name, value) in std::env::vars_os() {
            let is_kept = |name: &&str| !is_for_others(name) && !style.replaces(name);
            let Some(name) = name.to_str().filter(is_kept) else { continue };
            for mention in open(in_paths(value.as_bytes(), pid)) {
                let why = format!("{name} names {}", path_of(value.as_bytes(), &mention));
                kept.taken.entry(mention.number).or_insert(why);
            }
            let found: Vec<_> = open(in_variable(name, value.as_bytes())).collect();
            if !found.is_empty() {
                kept.named.push((name.to_owned(), value, found));
            }
        }
        if all {
            let can_move: BTreeSet<_> = kept.mentions().map(|mention| mention.number).collect();
            let open = inherited::open_from(FIRST)
                .map_err(|errno| Failure::system("see what is open", errno))?;
            for number in open.into_iter().filter(|it| is_open(*it) && !can_move.contains(it)) {
                kept.taken.entry(number).or_insert_with(|| "--keep-all keeps it".to_owned());
            }
        }
        Ok(kept)
    }

    /// Keeps a number free for something else.
    ///
    /// # Errors
    ///
    /// When the number is taken.
    pub fn reserve(&mut self, number: u32, why: &str) -> Result<(), Failure> {
        match self.taken.insert(number, why.to_owned()) {
            None => Ok(()),
            Some(other) => {
                let problem = format!("{number} cannot be two descriptors: {why}, and {other}");
                Err(Failure::new(exit::USAGE, problem))
            }
        }
    }

    /// Numbers that nothing else may get, and why.
    pub fn taken(&self) -> &BTreeMap<u32, String> {
        &self.taken
    }

    /// Whether this variable names something that is open.
    pub fn is_named_by(&self, variable: &str) -> bool {
        self.named.iter().any(|(name, _, _)| name == variable)
    }

    fn mentions(&self) -> impl Iterator<Item = &Mention> {
        self.named.iter().flat_map(|(_, _, mentions)| mentions)
    }

    /// Moves what variables name out of the way of these numbers, which descriptors are to get.
    ///
    /// # Errors
    ///
    /// When there is no room.
    pub fn settle(self, numbers: &[u32]) -> Result<Settled, Failure> {
        let is_to_be = |number: u32| numbers.contains(&number);
        let mut stay: Vec<u32> = self.taken.keys().copied().collect();
        stay.extend(self.perhaps.iter().copied().filter(|number| !is_to_be(*number)));
        let named: BTreeSet<u32> = self.mentions().map(|mention| mention.number).collect();
        let highest = numbers.iter().chain(&stay).chain(&named).copied().max();
        let above = highest.map_or(FIRST, |highest| highest.saturating_add(1));
        let mut moved = BTreeMap::new();
        for number in named {
            if !is_to_be(number) {
                stay.push(number);
                continue;
            }
            let copied = inherited::descriptor(number)
                .and_then(|fd| inherited::copy_to_keep(fd.as_fd(), above));
            let copy = copied.map_err(|errno| {
                Failure::system(format!("move descriptor {number} out of the way"), errno)
            })?;
            stay.push(copy);
            moved.insert(number, copy);
        }
        let renamed = |(name, value, mentions): (String, OsString, Vec<Mention>)| {
            let new = |mention: Mention| Some((mention.clone(), *moved.get(&mention.number)?));
            let changed: Vec<_> = mentions.into_iter().filter_map(new).collect();
            let value = OsString::from_vec(renumbered(value.as_bytes(), &changed));
            (!changed.is_empty()).then_some((name, Some(value)))
        };
        let variables = self.named.into_iter().filter_map(renamed).collect();
        Ok(Settled { numbers: (!self.all).then_some(stay), variables })
    }
}

/// Refuses to lose what systemd has given to this very process.
///
/// # Errors
///
/// Which descriptors nobody would get.
pub fn check_given(count: u32) -> Result<(), Failure> {
    if count == 0 || inherited::descriptor(FIRST).is_err() {
        return Ok(());
    }
    let last = FIRST.saturating_add(count - 1);
    let problem = format!(
        "LISTEN_FDS gives this process the descriptors {FIRST} to {last}, which would be closed: \
         --inherited passes them on, before the others"
    );
    Err(Failure::new(exit::USAGE, problem))
}
