------------------------------ MODULE Recovery ------------------------------
(***************************************************************************)
(* How a run commits its snapshots and finds them again after any crash.   *)
(*                                                                         *)
(* Attempts are told apart by their nonce, here 1..MaxAttempts.  A crash   *)
(* needs no action of its own: there is no fairness, so every process may  *)
(* stop for good between any two of its actions, or sleep there and go on  *)
(* after any number of newer attempts.  A restarted process is a new       *)
(* attempt.  Rule numbers are those of the protocol's fifteen rules;       *)
(* README.md beside this file maps rules to actions.                       *)
(***************************************************************************)
EXTENDS Naturals, Sequences, FiniteSets, TLC

CONSTANTS
    Ranks,        \* model values, interchangeable
    MaxAttempts,  \* launches of the whole world
    Working,      \* of those, how many get further than a settled plan
    MaxStep,      \* steps that are captured
    MaxEntries,   \* entries in the sequence
    MaxPassings,  \* plans that may pass over the newest candidate
    PowerCuts,    \* TRUE: what was not fsynced may be lost
    Keep,         \* verified newer candidates that a retirement needs
    References,   \* TRUE: a snapshot may list a file of an older one
    Rule1,        \* TRUE: create-if-absent; FALSE: rename, which replaces
    FolderSync,   \* TRUE: a writer fsyncs the folder before it acts on its entry (rule 1)
    ReaderSync,   \* TRUE: so does whoever decides from entries of others (rule 1)
    Rule2,        \* TRUE: names carry the nonce; FALSE: attempts share names
    Rule3,        \* TRUE: only the newest plan's chain counts
    Rule6,        \* TRUE: a vote waits for the rank's journal
    ShardSync,    \* TRUE: a vote waits for the rank's shard to be durable (P2)
    Rule9,        \* TRUE: retire, then delete; FALSE: delete once decided
    RefCheck,     \* TRUE: a commit lists an older file only while a live one does (rule 9)
    RefKeep,      \* TRUE: a deletion spares what a live commit lists (rule 9)
    Rule10,       \* TRUE: retention counts the live chain only, so keeps its base
    Rule12,       \* TRUE: a manifest takes votes of its own attempt and step only
    Rule15        \* TRUE: rank 0 of a superseded attempt enters nothing

Attempts == 1..MaxAttempts
Writing == 1..Working
Steps == 1..MaxStep
Start == <<0, 0>>  \* the base of a run that begins: no snapshot
Symmetry == Permutations(Ranks)

VARIABLES
    seq,      \* the sequence as readers see it: attempts, commits, retirements
    durable,  \* how many of its entries survive a power loss
    shard,    \* name -> [by: who wrote it, st: absent, cached, durable, torn, deleted]
    vote,     \* name -> the attempt that voted, 0 if nobody did
    ref,      \* name -> the older snapshot whose file of this rank it lists, or Start
    saver,    \* attempt, rank -> [step, at]: what the rank's saver did last
    journal,  \* attempt, rank -> events through this step are durable
    writer,   \* attempt -> what its supervisor, then its rank 0, is about to enter
    acked     \* commit entries whose rank 0 was told "durable"

vars == <<seq, durable, shard, vote, ref, saver, journal, writer, acked>>

-----------------------------------------------------------------------------
(* A file's name is (nonce, step, rank).  Without rule 2 all attempts      *)
(* share the names of the first.                                           *)

Nonce(a) == IF Rule2 THEN a ELSE 1

-----------------------------------------------------------------------------
(* Pure functions of a sequence q: what a reader concludes from it.        *)

IsPlan(e) == e.kind = "attempt"
IsCommit(e) == e.kind = "commit"
Id(c) == <<c.a, c.s>>  \* a snapshot is named by attempt and step

Max(S) == CHOOSE x \in S : \A y \in S : y <= x
Prefix(q, n) == SubSeq(q, 1, n)
Entries(q) == {q[i] : i \in 1..Len(q)}
Commits(q) == {e \in Entries(q) : IsCommit(e)}
Retired(q) == {e.of : e \in {x \in Entries(q) : x.kind = "retire"}}
Unretired(q) == {c \in Commits(q) : Id(c) \notin Retired(q)}

PlanAt(q) == {i \in 1..Len(q) : IsPlan(q[i])}
Newest(q) == IF PlanAt(q) = {} THEN 0 ELSE q[Max(PlanAt(q))].a
Passings(q) == Cardinality({e \in Entries(q) : IsPlan(e) /\ (e.rewind \/ e.unread # {})})

\* What attempt a's plan says of itself; a sequence that lost it says nothing.
Plan(q, a) ==
    LET plans == {e \in Entries(q) : IsPlan(e) /\ e.a = a}
    IN IF plans = {} THEN [base |-> Start, unread |-> {}] ELSE CHOOSE e \in plans : TRUE
Base(q, a) == Plan(q, a).base

\* The surviving (attempt, step) pairs: a's own above its base and not above
\* the step where the chain leaves a, then the same for the base's attempt.
RECURSIVE Chain(_, _, _)
Chain(q, a, upTo) ==
    IF a = 0 THEN {}
    ELSE LET base == Base(q, a)
         IN {<<a, s>> : s \in (base[2] + 1)..upTo} \cup Chain(q, base[1], base[2])

LiveCommits(q) ==
    LET chain == Chain(q, Newest(q), MaxStep)
    IN {c \in Unretired(q) : Id(c) \in chain}

\* Commits of attempt a that stand on the live chain.
Own(q, a) == {c \in LiveCommits(q) : c.a = a}

\* Rule 5: what the newest plan passed over only because it could not be read is
\* tried again, until that attempt has a commit.
Retried(q) ==
    LET a == Newest(q)
    IN IF \E c \in Commits(q) : c.a = a THEN {}
       ELSE {c \in Unretired(q) : Id(c) \in Plan(q, a).unread}

\* What recovery may choose from.
Candidates(q) == IF Rule3 THEN LiveCommits(q) \cup Retried(q) ELSE Unretired(q)

\* The highest step; among equal steps (only without rule 3) the later entry.
NewestOf(q, cs) ==
    IF cs = {} THEN Start
    ELSE LET top == Max({c.s : c \in cs})
             at == Max({i \in 1..Len(q) : q[i] \in cs /\ q[i].s = top})
         IN Id(q[at])

\* The snapshots whose file of rank r these commits list.
Listed(commits, r) ==
    ({<<c.parts[r].a, c.parts[r].s>> : c \in commits} \cup {c.parts[r].ref : c \in commits})
        \ {Start}

-----------------------------------------------------------------------------
(* Reading a snapshot back, every digest compared.  What is only cached    *)
(* reads well: a read-back proves content, not durability.                 *)

FileReads(id, r) ==
    LET f == shard[Nonce(id[1])][id[2]][r]
    IN f.by = id[1] /\ f.st \in {"cached", "durable"}
PartReads(p, r) ==
    /\ FileReads(<<p.a, p.s>>, r)
    /\ p.ref = Start \/ FileReads(p.ref, r)
Loads(c) == \A r \in Ranks : PartReads(c.parts[r], r)
LoadsId(q, id) == id = Start \/ \E c \in Commits(q) : Id(c) = id /\ Loads(c)

-----------------------------------------------------------------------------
(* Entering something into the sequence takes three steps of one writer,   *)
(* and anything may happen between them: decide from what was read, create *)
(* at the next number, settle by reading back.                             *)

Idle == [st |-> "idle"]
Started(a) == \A r \in Ranks : saver[a][r].at # "off"
Works(a) == Started(a) /\ a \in Writing
Free(a) == writer[a].st = "idle"
Begun(a) == Started(a) \/ ~Free(a)
Mine(a) == ~Rule15 \/ Newest(seq) = a  \* a superseded writer decides nothing

FsyncFolder(really) == durable' = IF really THEN Len(seq) ELSE durable

\* Whoever decides has fsynced the folder behind what it read: nothing that it
\* built on can vanish from under its number.
Decide(a, entry) ==
    /\ Len(seq) < MaxEntries
    /\ writer' = [writer EXCEPT ![a] =
           [st |-> "decided", entry |-> entry, at |-> Len(seq) + 1]]
    /\ FsyncFolder(ReaderSync)
    /\ UNCHANGED <<seq, shard, vote, ref, saver, journal, acked>>

\* Recovery: the newest candidate that verifies.  What is newer than the base is
\* passed over because it is damaged or unwanted (a rewind, final), or because it
\* could not be read just now; either may happen to what is in fact sound.
DecidePlan(a) ==
    LET all == Candidates(seq)
        bases == {Id(c) : c \in {d \in all : Loads(d)}} \cup {Start}
    IN /\ Free(a)
       /\ ~Started(a)
       /\ \A b \in 1..(a - 1) : Begun(b)  \* nonces are interchangeable: use them in order
       /\ \E base \in bases :
             LET passed == {Id(c) : c \in {d \in all : d.s > base[2]}}
             IN /\ passed # {} => Passings(seq) < MaxPassings
                /\ \E unread \in {{}, passed} :
                      /\ base = Start => unread = {}  \* nothing reads: recovery refuses
                      /\ Decide(a, [kind |-> "attempt", a |-> a, base |-> base,
                                    unread |-> unread, rewind |-> passed # unread])

\* Rank 0 saw a vote of every rank, wrote the manifest durably, and now reads
\* the sequence.  Steps commit in ascending order; older votes are abandoned.
Ballots(a, s) ==
    IF Rule12 THEN {[r \in Ranks |-> [a |-> a, s |-> s]]}
    ELSE [Ranks -> [a : Attempts, s : 1..s]]

DecideCommit(a, s) ==
    /\ Free(a)
    /\ Works(a)
    /\ Mine(a)
    /\ \A c \in Commits(seq) : c.a = a => c.s < s
    /\ \E ballot \in Ballots(a, s) :
          LET older == [r \in Ranks |-> ref[Nonce(a)][ballot[r].s][r]]
              parts == [r \in Ranks |-> [a |-> ballot[r].a, s |-> ballot[r].s, ref |-> older[r]]]
          IN /\ \A r \in Ranks : vote[Nonce(a)][ballot[r].s][r] = ballot[r].a
             /\ RefCheck => \A r \in Ranks :
                    older[r] = Start \/ older[r] \in Listed(Unretired(seq), r)
             /\ Decide(a, [kind |-> "commit", a |-> a, s |-> s, parts |-> parts])

\* Nothing goes before the newest attempt has a commit that was read back, and
\* then only behind Keep newer ones on the live chain that were, too.  Without
\* rule 10 any newer commit is counted.
Retirable(c) ==
    LET live == LiveCommits(seq)
        read == {d \in (IF Rule10 THEN live ELSE Unretired(seq)) : Loads(d)}
        newer == {d \in read : d.s > c.s \/ c \notin live}
    IN /\ Rule10 => \E d \in read : d.a = Newest(seq)
       /\ Cardinality(newer \ {c}) >= Keep

DecideRetire(a, c) ==
    /\ Free(a)
    /\ Works(a)
    /\ Mine(a)
    /\ Retirable(c)
    /\ Decide(a, [kind |-> "retire", a |-> a, of |-> Id(c)])

\* Rule 1.  Whoever comes second loses and decides anew; a rename replaces.
Create(a) ==
    LET w == writer[a]
        absent == w.at > Len(seq)
    IN /\ w.st = "decided"
       /\ seq' = IF absent THEN Append(seq, w.entry)
                 ELSE IF Rule1 THEN seq ELSE [seq EXCEPT ![w.at] = w.entry]
       /\ writer' = [writer EXCEPT ![a] =
              IF absent \/ ~Rule1 THEN [w EXCEPT !.st = "created"] ELSE Idle]
       /\ UNCHANGED <<durable, shard, vote, ref, saver, journal, acked>>

\* The folder is fsynced and the nonce read back: only now does anyone act on
\* the entry.  A plan starts its workers, a commit is acknowledged.
Settle(a) ==
    LET w == writer[a]
        held == w.at <= Len(seq) /\ seq[w.at] = w.entry
    IN /\ w.st = "created"
       /\ writer' = [writer EXCEPT ![a] = Idle]
       /\ FsyncFolder(FolderSync)
       /\ saver' = IF held /\ IsPlan(w.entry)
                   THEN [saver EXCEPT ![a] =
                            [r \in Ranks |-> [step |-> w.entry.base[2], at |-> "voted"]]]
                   ELSE saver
       /\ journal' = IF held /\ IsPlan(w.entry) /\ a \in Writing
                     THEN [journal EXCEPT ![a] = [r \in Ranks |-> w.entry.base[2]]]
                     ELSE journal
       /\ acked' = IF held /\ IsCommit(w.entry) THEN acked \cup {w.entry} ELSE acked
       /\ UNCHANGED <<seq, shard, vote, ref>>

-----------------------------------------------------------------------------
(* A rank's saver: write the shard, make it durable, vote.                 *)

Moves(a, r, step, at) == saver' = [saver EXCEPT ![a][r] = [step |-> step, at |-> at]]

\* What it references is listed by some commit that it has read, however long ago:
\* that one may be retired meanwhile, and its files deleted.
Older(r) == {Start} \cup (IF References THEN Listed(Commits(seq), r) ELSE {})

Write(a, r) ==
    LET s == saver[a][r].step + 1
    IN /\ a \in Writing
       /\ saver[a][r].at = "voted"
       /\ s \in Steps
       /\ shard' = [shard EXCEPT ![Nonce(a)][s][r] = [by |-> a, st |-> "cached"]]
       /\ \E older \in Older(r) : ref' = [ref EXCEPT ![Nonce(a)][s][r] = older]
       /\ Moves(a, r, s, "written")
       /\ UNCHANGED <<seq, durable, vote, journal, writer, acked>>

\* fsync the journal, fsync the shard, then vote.  A crash on the way leaves no
\* vote, which is all that anyone sees, so this is one action.
Vote(a, r) ==
    LET s == saver[a][r].step
        file == shard[Nonce(a)][s][r]
    IN /\ saver[a][r].at = "written"
       /\ IF ShardSync
          THEN /\ file.st \in {"cached", "durable"}
               /\ shard' = [shard EXCEPT ![Nonce(a)][s][r].st = "durable"]
          ELSE UNCHANGED shard
       /\ journal' = IF Rule6 THEN [journal EXCEPT ![a][r] = s] ELSE journal
       /\ vote' = [vote EXCEPT ![Nonce(a)][s][r] = a]
       /\ Moves(a, r, s, "voted")
       /\ UNCHANGED <<seq, durable, ref, writer, acked>>

-----------------------------------------------------------------------------
(* Rule 9: files go only behind a durable retirement, and only once no live *)
(* commit lists them.  Whoever deletes may have read the sequence long ago. *)
(* Without the rule they go as soon as somebody has decided.                *)

Dead(q, r) == Retired(q) \ (IF RefKeep THEN Listed(Unretired(q), r) ELSE {})
Doomed(r) ==
    IF Rule9 THEN IF References THEN UNION {Dead(Prefix(seq, n), r) : n \in 0..durable}
                  ELSE Retired(Prefix(seq, durable))
    ELSE {writer[a].entry.of : a \in
             {b \in Attempts : writer[b].st = "decided" /\ writer[b].entry.kind = "retire"}}

Delete(id) ==
    LET files == shard[Nonce(id[1])][id[2]]
        going == {r \in Ranks : id \in Doomed(r) /\ files[r].st # "deleted"}
    IN /\ going # {}
       /\ shard' = [shard EXCEPT ![Nonce(id[1])][id[2]] =
              [r \in Ranks |-> IF r \in going THEN [files[r] EXCEPT !.st = "deleted"]
                               ELSE files[r]]]
       /\ UNCHANGED <<seq, durable, vote, ref, saver, journal, writer, acked>>

\* A power loss takes any part of what was not fsynced, and the processes may
\* live on.  Any part: one thing at a time, since less is a legal loss as well.
\* A shard without a vote is left out: nobody reads it, so that tearing it is
\* the same as its saver stopping for good.
LoseShard(a, s, r) ==
    /\ shard[a][s][r].st = "cached"
    /\ vote[a][s][r] # 0
    /\ shard' = [shard EXCEPT ![a][s][r].st = "torn"]
    /\ UNCHANGED <<seq, durable, vote, ref, saver, journal, writer, acked>>

LoseEntry ==
    /\ durable < Len(seq)
    /\ seq' = Prefix(seq, Len(seq) - 1)
    /\ UNCHANGED <<durable, shard, vote, ref, saver, journal, writer, acked>>

PowerLoss ==
    /\ PowerCuts
    /\ LoseEntry \/ \E a \in Writing, s \in Steps, r \in Ranks : LoseShard(a, s, r)

-----------------------------------------------------------------------------
Init ==
    /\ seq = <<>>
    /\ durable = 0
    /\ shard = [a \in Writing |-> [s \in Steps |-> [r \in Ranks |-> [by |-> 0, st |-> "absent"]]]]
    /\ vote = [a \in Writing |-> [s \in Steps |-> [r \in Ranks |-> 0]]]
    /\ ref = [a \in Writing |-> [s \in Steps |-> [r \in Ranks |-> Start]]]
    /\ saver = [a \in Attempts |-> [r \in Ranks |-> [step |-> 0, at |-> "off"]]]
    /\ journal = [a \in Writing |-> [r \in Ranks |-> 0]]
    /\ writer = [a \in Attempts |-> Idle]
    /\ acked = {}

Next ==
    \/ \E a \in Attempts :
          \/ DecidePlan(a)
          \/ \E s \in Steps : DecideCommit(a, s)
          \/ \E c \in Unretired(seq) : DecideRetire(a, c)
          \/ Create(a)
          \/ Settle(a)
          \/ \E r \in Ranks : Write(a, r) \/ Vote(a, r)
    \/ \E id \in UNION {Doomed(r) : r \in Ranks} : Delete(id)
    \/ PowerLoss

Spec == Init /\ [][Next]_vars

-----------------------------------------------------------------------------
(* What must hold in every reachable state.                                *)

TypeOK ==
    /\ durable \in 0..Len(seq)
    /\ \A a \in Writing, s \in Steps, r \in Ranks :
          /\ shard[a][s][r].st \in {"absent", "cached", "durable", "torn", "deleted"}
          /\ shard[a][s][r].by \in 0..MaxAttempts
          /\ vote[a][s][r] \in 0..MaxAttempts
          /\ journal[a][r] \in 0..MaxStep
    /\ \A a \in Attempts, r \in Ranks : saver[a][r].at \in {"off", "written", "voted"}
    /\ \A a \in Attempts : writer[a].st \in {"idle", "decided", "created"}

\* The sequence only grows (or loses its undurable end), so that what is said of
\* every plan is checked in the state where that plan is the last entry.
EndsInPlan == Len(seq) > 0 /\ IsPlan(seq[Len(seq)])

\* A retirement was sound if, before it, the live chain had a newer commit, or
\* had left the snapshot behind.
SoundRetirement(id) ==
    \E i \in 1..Len(seq) :
        /\ seq[i].kind = "retire" /\ seq[i].of = id
        /\ LET before == Prefix(seq, i - 1)
           IN (\E c \in LiveCommits(before) \cup Retried(before) : Id(c) = id)
                  => \E d \in LiveCommits(before) : d.s > id[2]

\* Rule 1: nobody is about to enter at a number whose predecessor is gone.
NoHole == \A a \in Attempts : writer[a].st = "decided" => writer[a].at <= Len(seq) + 1

\* P1, P2, P10: an acknowledged commit stays in the sequence, and loads until
\* it is soundly retired.
NoLostCommit ==
    \A c \in acked :
        /\ c \in Entries(seq)
        /\ Loads(c) \/ SoundRetirement(Id(c))

\* P3: all parts of a committed manifest come from its attempt and its step.
NoMixedManifest ==
    \A c \in Commits(seq), r \in Ranks : c.parts[r].a = c.a /\ c.parts[r].s = c.s

\* Rule 9: what is dead in some beginning of the sequence is listed by no live commit
\* after it, so that whoever deletes may do so by an old reading.
DeadStaysDead ==
    \A n \in 0..Len(seq), r \in Ranks :
        (Retired(Prefix(seq, n)) \ Listed(Unretired(Prefix(seq, n)), r))
            \cap Listed(Unretired(seq), r) = {}

\* P10: the newest plan's base loads, and so does what that plan could not read,
\* until its attempt has a commit that loads.
LiveBaseKept ==
    LET plan == Plan(seq, Newest(seq))
    IN \/ \A id \in {plan.base} \cup plan.unread : LoadsId(seq, id)
       \/ \E c \in Own(seq, Newest(seq)) : Loads(c)

\* Commits that were entered when another attempt was the newest.
Late(q) ==
    {q[i] : i \in {j \in 1..Len(q) : IsCommit(q[j]) /\ Newest(Prefix(q, j - 1)) # q[j].a}}

\* P4: a late commit is no candidate, and what a plan left behind never returns.
NoSupersededCommit ==
    LET left == UNION {LET q == Prefix(seq, i)
                       IN Commits(q) \ (LiveCommits(q) \cup Retried(q)) : i \in PlanAt(seq)}
    IN /\ \A c \in Late(seq) : c \notin Candidates(seq)
       /\ EndsInPlan => \A c \in left : c \notin Candidates(seq)

\* Rule 15: nor was anybody told that a late commit is durable.
NoLateAck == acked \cap Late(seq) = {}

\* P7: until its attempt commits, planning again comes to the newest plan's base,
\* or to what that plan would have taken if only it could have read it.
Idempotent ==
    LET plan == Plan(seq, Newest(seq))
        again == NewestOf(seq, Candidates(seq))
    IN (\A c \in Commits(seq) : c.a # Newest(seq)) =>
          IF plan.unread = {} THEN again = plan.base ELSE again \in plan.unread

\* P4: every plan goes on from the history that was live before it, and from its
\* newest commit unless it says that it passed it over.
OneHistory ==
    EndsInPlan =>
        LET before == Prefix(seq, Len(seq) - 1)
            live == LiveCommits(before) \cup Retried(before)
            plan == seq[Len(seq)]
        IN /\ plan.base = Start \/ \E c \in live : Id(c) = plan.base
           /\ plan.rewind \/ plan.unread # {} \/ plan.base = NewestOf(before, live)

\* Rule 6: every rank's events through a committed step are durable.
JournalBehindCommit ==
    \A c \in Commits(seq), r \in Ranks : journal[c.a][r] >= c.s
=============================================================================
