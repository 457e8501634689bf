package Referral::Test::Oracle;

# Copyright (C) The nginx referral module authors

=head1 NAME

Referral::Test::Oracle - clients that remember every request they made, and
the judgement over what became of it

=head1 SYNOPSIS

    my $oracle = Referral::Test::Oracle->new(dir => $t->dir(),
        port => $t->port('http'), codes => [ 'A', 'B' ], off => [ 'OFF' ]);

    $oracle->start(clients => 2, rate => 300);      # processes of their own
    ...                                             # faults
    $oracle->stop();

    my $verdict = $oracle->judge($pg, db => 'name');
    # { requests, accepted, refused, unanswered, lost, doubled, wrong => [] }

=head1 DESCRIPTION

The server has to show what it recorded, and as what:

    add_header X-Click $referral_click_id always;
    add_header X-Verdict $referral_verdict always;

Each request carries a tag of its own as utm_content, so that a request that
got no answer is recognized, too.  A request is one of: answered with an id,
answered without one, answered with an error that nothing is recorded for
(429, 5xx without an id), not answered.

=cut

use strict;
use warnings;

use Errno qw(EAGAIN EINTR EWOULDBLOCK);
use IO::Select;
use IO::Socket::INET;
use POSIX ();
use Time::HiRes qw(sleep time);


use constant {
    CONNECTIONS => 6,                   # of one client
    TIMEOUT     => 8,                   # s, then a request has no answer
};


# (dir =>, port =>, codes => [], off => [] (inactive ones), noise => share of
# requests for unknown codes, unknown => how many there are, headers => sub of
# the tag: a list, args => sub of the tag: more of the query)

sub new {
    my ($class, %arg) = @_;

    my $self = bless { runs => 0, pids => [], requests => {}, codes => [],
                       off => [], unknown => 40, noise => 0.1, %arg }, $class;

    mkdir("$self->{dir}/oracle");

    return $self;
}


# (clients => 2, rate => requests a second of all, port =>)

sub start {
    my ($self, %arg) = @_;

    my $clients = $arg{clients} // 2;
    my $rate = ($arg{rate} // 300) / $clients;

    $self->{runs}++;

    for my $n (1 .. $clients) {
        my $name = "$self->{runs}-$n";
        my $log = "$self->{dir}/oracle/$name";
        my $pid = fork();

        die "fork: $!\n" unless defined $pid;

        if ($pid == 0) {
            srand(($arg{seed} // int(rand(2 ** 30))) * 97 + $n);
            eval { $self->client($name, $log, $rate, $arg{port}) };
            print STDERR "oracle client: $@" if $@;
            POSIX::_exit($@ ? 1 : 0);
        }

        push @{ $self->{pids} }, [ $pid, $log ];
    }

    return $self;
}


# no new requests; waits for the answers to those under way

sub stop {
    my ($self) = @_;

    my @pids = @{ $self->{pids} };

    kill('USR1', $_->[0]) for @pids;

    for (@pids) {
        my ($pid, $log) = @$_;

        waitpid($pid, 0);
        die "an oracle client failed, wait status $?\n" if $?;

        $self->load($log);
        unlink($log);
    }

    $self->{pids} = [];

    return $self;
}


sub load {
    my ($self, $log) = @_;

    open(my $fh, '<', $log) or die "$log: $!\n";

    while (my $line = <$fh>) {
        chomp($line);
        my ($tag, $code, $status, $id, $verdict) = split(/ /, $line, -1);
        $id =~ tr/-//d;
        $self->{requests}{$tag} = { code => $code, status => $status,
                                    id => $id, verdict => $verdict };
    }
}


# The client.  USR1 ends it.

sub client {
    my ($self, $name, $log, $rate, $port) = @_;

    my ($ending, $number, $select, %conn, @idle) = (0, 0, IO::Select->new());

    local $SIG{USR1} = sub { $ending = 1 };
    local $SIG{TERM} = sub { POSIX::_exit(0) };
    local $SIG{INT} = $SIG{TERM};
    local $SIG{PIPE} = 'IGNORE';

    open(my $fh, '>', $log) or die "$log: $!\n";

    $port //= $self->{port};

    my $start = time();
    my $due = $start;
    my $finish;

    my $over = sub {
        my ($c, $status, $id, $verdict) = @_;

        print $fh "$c->{tag} $c->{code} $status $id $verdict\n";
        delete $c->{tag};
    };

    my $drop = sub {
        my ($c) = @_;

        $over->($c, 0, '', '') if defined $c->{tag};
        $select->remove($c->{sock});
        delete $conn{fileno($c->{sock})};
        close($c->{sock});
    };

    for ( ;; ) {
        my $now = time();

        $finish //= $now + TIMEOUT if $ending;

        my @busy = grep { defined $_->{tag} } values %conn;

        last if $ending && (!@busy || $now > $finish);

        for my $c (@busy) {
            $drop->($c) if $now > $c->{sent} + TIMEOUT;
        }

        # one that stood still does not catch up with a burst

        $due = $now - 0.1 if $due < $now - 0.1;

        while (!$ending && $now >= $due) {
            my ($c) = grep { !defined $_->{tag} } values %conn;

            if (!$c || (rand() < 0.1 && keys(%conn) < CONNECTIONS)) {
                last if keys(%conn) >= CONNECTIONS;

                my $sock = IO::Socket::INET->new(PeerAddr => '127.0.0.1',
                                                 PeerPort => $port,
                                                 Timeout => 2);

                if (!$sock) {
                    $due = $now + 0.05;
                    last;
                }

                $sock->blocking(0);
                $c = { sock => $sock, buf => '' };
                $conn{fileno($sock)} = $c;
                $select->add($sock);
            }

            $due += 1 / $rate;

            my $tag = "$name-" . ++$number;
            my ($code, $text) = $self->request($tag);

            @$c{qw(tag code sent method)} = ($tag, $code, $now,
                                             $text =~ /^HEAD/ ? 'HEAD' : '');

            # a long text is taken in pieces by the select below

            $c->{out} = $text;
            $self->push_out($c) or $drop->($c);
        }

        for my $c (grep { length($_->{out} // '') } values %conn) {
            $self->push_out($c) or $drop->($c);
        }

        my $wait = $ending ? 0.05 : $due - time();

        $wait = 0.001 if $wait < 0.001;
        $wait = 0.05 if $wait > 0.05;

        if (!$select->count()) {
            sleep($wait);
            next;
        }

        for my $sock ($select->can_read($wait)) {
            my $c = $conn{fileno($sock)} or next;
            my $n = sysread($sock, $c->{buf}, 65536, length($c->{buf}));

            if (!defined $n) {
                next if $! == EAGAIN || $! == EINTR || $! == EWOULDBLOCK;
                $n = 0;
            }

            my $head = $self->answer($c, $n == 0);

            if ($head && defined $c->{tag}) {
                my ($status) = $head =~ m{^HTTP/1\.1 (\d+)};
                my ($id) = $head =~ /^X-Click: (\S+)/mi;
                my ($verdict) = $head =~ /^X-Verdict: (\S+)/mi;

                $over->($c, $status, $id // '', $verdict // '');
                $drop->($c) if $head =~ /^Connection: close/mi;
                next;
            }

            $drop->($c) if $n == 0;
        }
    }

    $drop->($_) for values %conn;

    close($fh) or die "$log: $!\n";
}


sub push_out {
    my ($self, $c) = @_;

    return 1 unless length($c->{out});

    my $n = syswrite($c->{sock}, $c->{out});

    return $! == EAGAIN || $! == EINTR unless defined $n;

    substr($c->{out}, 0, $n, '');

    return 1;
}


# the header of the answer when that is complete

sub answer {
    my ($self, $c, $eof) = @_;

    return undef unless $c->{buf} =~ /\A(HTTP.*?\r\n)\r\n/s;

    my $head = $1;
    my $length = length($head) + 2;

    if ($c->{method} ne 'HEAD' && $head =~ /^Content-Length: (\d+)/mi) {
        return undef if length($c->{buf}) < $length + $1;
        $length += $1;
    }

    substr($c->{buf}, 0, $length, '');

    return $head;
}


# (code, text) of one request: mostly good codes, by link and on pages

sub request {
    my ($self, $tag) = @_;

    my $x = rand();
    my @codes = @{ $self->{codes} };
    my ($code, $path) = $codes[int(rand(@codes))];
    my $method = rand() < 0.04 ? 'HEAD' : 'GET';

    if ($x < $self->{noise}) {
        $code = 'NONE' . int(rand($self->{unknown}));

    } elsif ($x < $self->{noise} + 0.04 && @{ $self->{off} }) {
        $code = $self->{off}[int(rand(@{ $self->{off} }))];

    } elsif ($x < $self->{noise} + 0.06) {
        $code = 'a%20b';
    }

    $path = rand() < 0.7 ? "/r/$code?" : "/page?ref=$code&";
    $path .= "utm_content=$tag";
    $path .= '&' . $self->{args}->($tag) if $self->{args};

    my @headers = $self->{headers} ? $self->{headers}->($tag) : ();
    my $text = "$method $path HTTP/1.1\r\nHost: localhost\r\n";

    $text .= "Connection: close\r\n" if rand() < 0.1;

    while (my ($name, $value) = splice(@headers, 0, 2)) {
        $text .= "$name: $value\r\n";
    }

    return ($code, "$text\r\n");
}


# One request by hand, remembered like the others; its id or ''.

sub ask {
    my ($self, $path, %arg) = @_;

    my $tag = 'hand-' . ++$self->{asked};
    my $sock = IO::Socket::INET->new(PeerAddr => '127.0.0.1', Timeout => 2,
        PeerPort => $arg{port} // $self->{port}) or return '';
    my $c = { sock => $sock, buf => '', method => 'GET' };
    my $end = time() + TIMEOUT;
    my ($code) = $path =~ /([^\/=]+)$/;
    my $r = { code => $code, status => 0, id => '', verdict => '' };

    local $SIG{PIPE} = 'IGNORE';

    $path .= ($path =~ /\?/ ? '&' : '?') . "utm_content=$tag";
    $self->{requests}{$tag} = $r;
    syswrite($sock, "GET $path HTTP/1.1\r\nHost: localhost\r\n"
                    . ($arg{headers} // '') . "\r\n");

    while (time() < $end && IO::Select->new($sock)->can_read(1)) {
        last unless sysread($sock, $c->{buf}, 65536, length($c->{buf}));

        my $head = $self->answer($c) or next;

        ($r->{status}) = $head =~ m{^HTTP/1\.1 (\d+)};
        $r->{id} = $1 if $head =~ /^X-Click: (\S+)/mi;
        $r->{verdict} = $1 if $head =~ /^X-Verdict: (\S+)/mi;
        $r->{id} =~ tr/-//d;
        last;
    }

    close($sock);

    return $r->{id};
}


# answers without an id up to now have been compared with the counters

sub forget_drops {
    my ($self) = @_;

    $_->{old} = 1 for values %{ $self->{requests} };

    return;
}


# the ids that were given out so far

sub accepted {
    my ($self) = @_;
    return grep { length } map { $_->{id} } values %{ $self->{requests} };
}


# What became of the requests.  wrong is a list of sentences, empty when all
# is as it has to be; the other members are numbers.
#
# (db =>, dropped => sum of the dropped counters, undef: not to be compared,
#  damage => 1: records were damaged on purpose; those lost have to be
#  reported as gaps, at most that many)

sub judge {
    my ($self, $pg, %arg) = @_;

    my @db = defined $arg{db} ? (db => $arg{db}) : ();
    my %v = (requests => 0, accepted => 0, refused => 0, unanswered => 0,
             lost => 0, doubled => 0, wrong => []);
    my (%by_id, %by_tag, %id_of);

    my @rows = $self->rows($pg, q{
        SELECT replace(id::text, '-', ''), args ->> 'utm_content', 'row'
            FROM referral.interaction
        UNION ALL
        SELECT replace(data ->> 'id', '-', ''),
               data -> 'args' ->> 'utm_content', 'quarantine'
            FROM referral.quarantine }, @db);

    for (@rows) {
        my ($id, $tag) = @$_;

        next unless defined $id;
        $by_id{$id}++;
        next unless defined $tag;
        $by_tag{$tag}++;
        $id_of{$tag} = $id;
    }

    # a dead letter has its record as bytes; the id stands in it

    my $dead = join(' ', map { $_->[0] // '' } $self->rows($pg,
        "SELECT encode(record, 'hex') FROM referral.dead_letter", @db));

    if ($dead =~ /\S/) {
        for (values %{ $self->{requests} }) {
            $by_id{$_->{id}} += () = $dead =~ /$_->{id}/g if length($_->{id});
        }
    }

    my ($given, $unsure, %given) = (0, 0);

    for my $tag (keys %{ $self->{requests} }) {
        my $r = $self->{requests}{$tag};
        my $n = $by_tag{$tag} // 0;

        $v{requests}++;

        if (length($r->{id})) {
            $v{accepted}++;

            my $have = $by_id{$r->{id}} // 0;

            if ($given{$r->{id}}++) {
                $self->wrong(\%v, "the id $r->{id} was given out twice");
            }

            if ($have == 0) {
                $v{lost}++;
                $self->wrong(\%v, "lost: $r->{id} of $tag, $r->{code}")
                    unless $arg{damage};

            } elsif ($have > 1 || $n > 1) {
                $v{doubled}++;
                $self->wrong(\%v, "doubled: $r->{id} of $tag, $r->{code}");

            } elsif (defined $id_of{$tag} && $id_of{$tag} ne $r->{id}) {
                $self->wrong(\%v, "altered: $tag is $id_of{$tag} in the"
                                  . " database, $r->{id} was answered");

            } elsif ($r->{code} !~ /%/ && !$self->{untagged}
                     && !defined $id_of{$tag} && $dead !~ /$r->{id}/)
            {
                $self->wrong(\%v, "altered: $r->{id} without its tag $tag");
            }

            next;
        }

        if ($r->{status} == 0) {
            $v{unanswered}++;
            $unsure++ unless $r->{old};

            if ($n > 1) {
                $v{doubled}++;
                $self->wrong(\%v, "doubled: $tag, which had no answer");
            }

            next;
        }

        $given++ if !$r->{old} && $r->{status} != 429 && $r->{status} != 500
                    && $r->{status} != 502 && $r->{status} != 400
                    && $r->{status} != 414;
        $v{refused}++;

        $self->wrong(\%v, "$tag is recorded, but was answered without an id"
                          . " ($r->{status})") if $n;
    }

    # a request without an answer may have been one of those dropped

    if (defined $arg{dropped}
        && ($arg{dropped} < $given
            || $arg{dropped} > $given + $unsure))
    {
        $self->wrong(\%v, "$given requests were answered without an id, "
                          . "dropped counters say $arg{dropped}"
                          . ($unsure ? " ($unsure without an answer)"
                                        : ''));
    }

    $self->conserved($pg, \%v, %arg);

    return \%v;
}


# the first few of a kind are enough to look for the reason

sub wrong {
    my ($self, $v, $text) = @_;

    push @{ $v->{wrong} }, $text if @{ $v->{wrong} } < 12;
}


sub rows {
    my ($self, $pg, $sql, %arg) = @_;
    # nothing at all is one row with an empty column
    return grep { @$_ > 1 || length($_->[0] // '') } $pg->rows($sql, %arg);
}


# the books of the database agree with themselves

sub conserved {
    my ($self, $pg, $v, %arg) = @_;

    my @db = defined $arg{db} ? (db => $arg{db}) : ();

    my ($sum) = $pg->rows(q{
        SELECT coalesce(sum(rows), 0), coalesce(sum(quarantined), 0),
               coalesce(sum(dead), 0), coalesce(sum(gap), 0)
            FROM referral.ingest_cursor }, @db);

    @$v{qw(rows quarantined dead gap)} = @$sum;

    $self->wrong($v, "$v->{lost} lost, but only $v->{gap} reported as gaps"
                     . " and $v->{dead} as dead letters")
        if $arg{damage} && $v->{lost} > $v->{gap} + $v->{dead};

    $self->wrong($v, "$v->{gap} records are gaps")
        if $v->{gap} && !$arg{damage} && !$arg{gaps};
    $self->wrong($v, "$v->{dead} records are dead letters")
        if $v->{dead} && !$arg{damage} && !$arg{dead};

    my %equal = (
        'seq = rows + quarantined + dead + gap' => q{
            SELECT stream, seq FROM referral.ingest_cursor
                WHERE seq <> rows + quarantined + dead + gap },

        'rows are there' => q{
            SELECT c.stream, c.rows, count(i.seq), count(DISTINCT i.seq),
                   min(i.seq), max(i.seq), c.seq
                FROM referral.ingest_cursor c
                LEFT JOIN referral.interaction i ON i.stream = c.stream
                GROUP BY c.stream, c.rows, c.seq
                HAVING count(i.seq) <> c.rows
                       OR count(DISTINCT i.seq) <> c.rows
                       OR max(i.seq) > c.seq OR min(i.seq) < 1 },

        'quarantined, dead and gap are there' => q{
            SELECT * FROM (
                SELECT c.stream, c.quarantined, c.dead, c.gap,
                    (SELECT count(*) FROM referral.quarantine q
                         WHERE q.stream = c.stream) AS q,
                    (SELECT count(*) FROM referral.dead_letter d
                         WHERE d.stream = c.stream) AS d,
                    coalesce((SELECT sum(to_seq - from_seq + 1)
                                  FROM referral.ingest_gap g
                                  WHERE g.stream = c.stream), 0) AS g
                    FROM referral.ingest_cursor c) s
                WHERE q <> quarantined OR d <> dead OR g <> gap },

        'every row belongs to a stream' => q{
            SELECT stream, seq FROM referral.interaction i
                WHERE NOT EXISTS (SELECT FROM referral.ingest_cursor c
                                      WHERE c.stream = i.stream) },

        'counters = count(*) by code and day' => q{
            SELECT c.code, c.day, c.n, i.code, i.day, i.n
                FROM (SELECT code, day, sum(n) AS n FROM referral.counters
                          GROUP BY code, day) c
                FULL JOIN (SELECT code,
                                  (occurred_at AT TIME ZONE 'UTC')::date
                                  AS day, count(*) AS n
                               FROM referral.interaction GROUP BY 1, 2) i
                    ON coalesce(c.code, '') = coalesce(i.code, '')
                       AND c.day = i.day
                WHERE c.n IS DISTINCT FROM i.n },

        'occurred_at is that of the id' => q{
            SELECT id, occurred_at FROM referral.interaction
                WHERE occurred_at <> referral.uuid_time(id) },
    );

    for my $name (sort keys %equal) {
        for ($self->rows($pg, $equal{$name}, @db)) {
            $self->wrong($v, "not so: $name: "
                             . join(', ', map { $_ // 'null' } @$_));
        }
    }
}


1;
