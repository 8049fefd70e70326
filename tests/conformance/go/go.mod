module netcomm.example/peer

go 1.22
