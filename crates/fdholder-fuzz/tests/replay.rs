//! What the fuzzers run, without a fuzzer: the seeds, what fuzzing has found worth keeping,
//! and anything.

#![allow(clippy::unwrap_used)]

use fdholder_fuzz::{Target, TARGETS};
use proptest::prelude::*;
use std::fs;
use std::path::PathBuf;

fn target(name: &str) -> Target {
    *TARGETS.iter().find(|target| target.name == name).unwrap()
}

fn corpus(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "corpus", name].iter().collect()
}

fn replay(name: &str) {
    let target = target(name);
    for seed in (target.seeds)() {
        (target.run)(&seed);
    }
    let mut files: Vec<_> =
        fs::read_dir(corpus(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!files.is_empty(), "no corpus of {name}");
    files.sort();
    for file in files {
        // Seen only when it fails, and then it is the last.
        println!("{}", file.display());
        (target.run)(&fs::read(file).unwrap());
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(
            mod $name {
                use super::*;

                #[test]
                fn replays_its_corpus() {
                    replay(stringify!($name));
                }

                proptest! {
                    #[test]
                    fn takes_anything(data in proptest::collection::vec(any::<u8>(), 0..600)) {
                        fdholder_fuzz::$name(&data);
                    }

                    /// A seed with bytes of it changed, left out and repeated.
                    #[test]
                    fn takes_what_is_nearly_honest(
                        seed: prop::sample::Index,
                        changes in proptest::collection::vec(
                            (any::<prop::sample::Index>(), any::<u8>(), 0u8..3), 0..12),
                    ) {
                        let seeds = (target(stringify!($name)).seeds)();
                        let mut data = seed.get(&seeds).clone();
                        for (position, byte, how) in changes {
                            let position = position.index(data.len());
                            match how {
                                0 => data[position] = byte,
                                1 => drop(data.drain(position..=position)),
                                _ => data.insert(position, byte),
                            }
                            if data.is_empty() {
                                break;
                            }
                        }
                        fdholder_fuzz::$name(&data);
                    }
                }
            }
        )*

        #[test]
        fn no_target_is_forgotten() {
            let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
            let folder = corpus("");
            let mut folders: Vec<_> =
                fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            folders.sort();
            let mut names = names;
            names.sort_unstable();
            assert_eq!(folders, names);
        }
    };
}

targets! { frames requests replies link cdb rules connection }
