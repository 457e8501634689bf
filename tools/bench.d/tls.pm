package tls;

# Copyright (C) The nginx referral module authors
#
# TLS with HTTP/2, under h2load; and two workers, under wrk.

use strict;
use warnings;


sub run {
    my ($b) = @_;

    $b->codes(1000);

    my ($cert, $key) = map { $b->dir() . "/$_.pem" } qw(cert key);

    $b->run('openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt',
            'ec_paramgen_curve:prime256v1', '-nodes', '-days', 2, '-subj',
            '/CN=localhost', '-keyout', $key, '-out', $cert) unless -e $cert;

    for my $name (qw(return302 redirect)) {

        for (1, 2) {
            my $instance = $name . ($_ == 1 ? '-h2' : '-2w');

            mkdir($b->dir() . "/$instance");
            mkdir($b->dir() . "/$instance/journal");
            $b->nginx($instance, conf => $name,
                set => { STATUS => $b->port(),
                         LISTEN => $_ == 1 ? 'ssl http2' : '',
                         COMMON => $b->common()
                             . "    ssl_certificate $cert;\n"
                             . "    ssl_certificate_key $key;\n" },
                workers => $_);
        }
    }

    $b->note('tls: HTTP/2; two workers');
    $b->measure(
        map { { name => "$_->[0]_h2", nginx => "$_->[0]-h2", path => '/r/',
                h2 => 1, settle => 0.6 },
              { name => "$_->[0]_2w", nginx => "$_->[0]-2w",
                path => '/r/', settle => 0.6 } }
        [ 'return302' ], [ 'redirect' ]);

    $b->set_ratio('redirect_h2', 'redirect_h2', 'return302_h2');
    $b->set_ratio('redirect_2w', 'redirect_2w', 'return302_2w');

    $b->end_nginx($_)
        for qw(return302-h2 return302-2w redirect-h2 redirect-2w);
}


1;
