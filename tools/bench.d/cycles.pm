package cycles;

# Copyright (C) The nginx referral module authors
#
# Instructions of a click by part, counted by valgrind's callgrind: the counts
# repeat from run to run.  A part has what it calls in it.

use strict;
use warnings;


my @parts = (
    [ 'look the code up' => 'ngx_http_referral_lookup' ],
    [ 'read the headers' => 'ngx_http_referral_read_headers' ],
    [ 'id' => 'referral_uuid7' ],
    [ 'geo' => 'ngx_http_referral_geo_get' ],
    [ 'journal, encoded and appended' => 'ngx_http_referral_journal_append' ],
    [ 'destination' => 'referral_destination_plain' ],
    [ 'cookie, signed' => 'ngx_http_referral_cookie_set' ],
    [ 'Cache-Control' => 'ngx_http_referral_filter_no_store' ],
    [ 'commit: place, id, record, token' => 'ngx_http_referral_commit' ],
);


sub run {
    my ($b) = @_;

    $b->codes(1000);

    my $limit = count($b, 'return302', '/r/');

    mkdir($b->dir() . '/redirect');
    mkdir($b->dir() . '/redirect/journal');

    my $ours = count($b, 'redirect', '/r/', STATUS => $b->port());
    my $cycles = $b->{result}{cycles} = {
        'whole request' => $ours->{total},
        'return302, whole request' => $limit->{total},
    };

    for (@parts) {
        my ($part, $function) = @$_;
        $cycles->{"  $part"} = $ours->{$function} if $ours->{$function};
    }

    $b->{result}{ratio}{instructions} = $ours->{total} / $limit->{total};
}


# instructions per request: of all, and of each function with what it calls

sub count {
    my ($b, $name, $path, %set) = @_;

    $b->note("cycles: $name under valgrind");

    my $file = $b->dir() . "/callgrind.$name";
    my $user = $> == 0 ? 'user root;' : '';
    my $nginx = $b->nginx($name, set => { %set,
        GLOBAL => "daemon off;\nmaster_process off;\n$user\n"
                  . "pid " . $b->dir() . "/$name/pid;\n"
                  . "error_log " . $b->dir() . "/$name/error.log warn;\n"
                  . "events { worker_connections 1024; }\n" },
        alone => 1, wrap => [ 'valgrind', '--tool=callgrind', '-q',
                              "--callgrind-out-file=$file" ]);
    my $pid = $nginx->{process}->pid();
    my %slice = (name => $name, nginx => $name, path => $path, failing => 1);

    # caches are warm first

    $b->slice({ %slice, seconds => seconds($b, 12) });
    $b->run('callgrind_control', '-z', $pid);
    my $r = $b->slice({ %slice, seconds => seconds($b, 8) });
    $b->run('callgrind_control', '-d', $pid);
    $b->pause(0.5);
    $b->end_nginx($name);

    my ($dump) = sort { -M $a <=> -M $b } glob("$file.*");
    my %count;

    for (split(/\n/, $b->run('callgrind_annotate', '--inclusive=yes',
                             '--threshold=99.99', $dump)))
    {
        my ($n, $what) = /^\s*([\d,]+)\s*(?:\([\d. ]+%\))?\s+(.*)$/ or next;
        $n =~ tr/,//d;

        if ($what =~ /^PROGRAM TOTALS/) {
            $count{total} = $n / $r->{requests};
            next;
        }

        my ($function) = $what =~ /:([A-Za-z_0-9]+)(?:\s|'|$)/ or next;
        $count{$function} //= $n / $r->{requests};
    }

    return \%count;
}


sub seconds {
    my ($b, $whole) = @_;

    return $b->{seconds} < 1 ? 1 : $b->{fast} ? int($whole / 3) : $whole;
}


1;
